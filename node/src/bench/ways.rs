//! The two directions of a transfer, and what is measured in both.

use mwb_sim::traffic::{FlowResult, FlowSpec, TrafficError, download, upload};
use serde::Serialize;

/// Direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Towards the edge.
    Download,
    /// From the edge.
    Upload,
}

impl Way {
    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Upload => "upload",
        }
    }

    /// Runs a flow.
    ///
    /// # Errors
    /// Those of [`download`] and [`upload`].
    pub(super) fn flow(self, spec: &FlowSpec) -> Result<FlowResult, TrafficError> {
        match self {
            Self::Download => download(spec),
            Self::Upload => upload(spec),
        }
    }
}

/// Something measured both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Ways<T> {
    /// Towards the edge.
    pub(super) download: T,
    /// From the edge.
    pub(super) upload: T,
}

impl<T> Ways<T> {
    /// Measures the download, then the upload.
    ///
    /// # Errors
    /// Those of `measure`.
    pub(super) fn try_of(mut measure: impl FnMut(Way) -> anyhow::Result<T>) -> anyhow::Result<Self> {
        let download = measure(Way::Download)?;
        Ok(Self { download, upload: measure(Way::Upload)? })
    }

    /// One of them.
    pub(super) fn of(&self, way: Way) -> &T {
        match way {
            Way::Download => &self.download,
            Way::Upload => &self.upload,
        }
    }

    /// Something of each.
    pub(super) fn map<R>(&self, mut value: impl FnMut(&T) -> R) -> Ways<R> {
        Ways { download: value(&self.download), upload: value(&self.upload) }
    }
}

impl Ways<f64> {
    /// This as a part of `whole`.
    pub(super) fn over(self, whole: Self) -> Self {
        Self { download: self.download / whole.download, upload: self.upload / whole.upload }
    }
}

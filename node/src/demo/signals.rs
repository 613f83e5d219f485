//! Ctrl-C and its like end the demo in order: programs, namespaces and files go before the process does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Context;
use futures_util::FutureExt;
use tokio::signal::unix::{SignalKind, signal};

/// Added to a signal's number for the exit code, as shells do.
const EXIT_CODE_BASE: u8 = 128;
const SIGNALS: [(SignalKind, u8); 3] =
    [(SignalKind::hangup(), 1), (SignalKind::interrupt(), 2), (SignalKind::terminate(), 15)];

/// Whether a signal asked this process to end.
#[derive(Clone)]
pub(super) struct Interruption {
    number: Arc<AtomicU8>,
}

/// A signal asked this process to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; everything it started is gone")]
pub(super) struct Interrupted {
    /// What the process exits with.
    pub(super) code: u8,
}

impl Interruption {
    /// Watches from now on, on a thread of its own: call it after [`mwb_sim::lab::enter`]. The first signal is noted,
    /// a second one ends the process at once.
    ///
    /// # Errors
    /// When the thread or the handlers cannot be made.
    pub(super) fn watch() -> anyhow::Result<Self> {
        let number = Arc::new(AtomicU8::new(0));
        let noted = Arc::clone(&number);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut streams = Vec::new();
        {
            let _inside = runtime.enter();
            for (kind, number) in SIGNALS {
                streams.push((signal(kind).context("watching signals")?, number));
            }
        }
        let next = async move |streams: &mut Vec<(tokio::signal::unix::Signal, u8)>| {
            let waits = streams.iter_mut().map(|(stream, number)| {
                let number = *number;
                async move { stream.recv().await.map(|()| number) }.boxed()
            });
            futures_util::future::select_all(waits).await.0
        };
        let work = move || {
            runtime.block_on(async move {
                if let Some(first) = next(&mut streams).await {
                    noted.store(first, Ordering::Relaxed);
                }
                if let Some(second) = next(&mut streams).await {
                    std::process::exit(i32::from(EXIT_CODE_BASE + second));
                }
            });
        };
        std::thread::Builder::new().name("signals".into()).spawn(work).context("starting a thread")?;
        Ok(Self { number })
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// [`Interrupted`] once a signal came.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        match self.number.load(Ordering::Relaxed) {
            0 => Ok(()),
            number => Err(Interrupted { code: EXIT_CODE_BASE + number }.into()),
        }
    }
}

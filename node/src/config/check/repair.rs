//! Parity and duplication.

use mwb_proto::bond::{Classes, DuplicationConfig, DuplicationMode, FecConfig, FecMode};
use mwb_proto::wire::v2::Class;

use crate::config::{class_name, file};

pub(super) fn fec(written: &file::Fec) -> FecConfig {
    FecConfig {
        mode: FecMode::ALL.into_iter().find(|mode| mode.name() == written.mode).unwrap_or_default(),
        data_shards: written.data_shards,
        parity_shards: written.parity_shards,
        redundancy: written.redundancy,
    }
}

pub(super) fn duplication(written: &file::Duplication) -> DuplicationConfig {
    let mode = DuplicationMode::ALL.into_iter().find(|mode| mode.name() == written.mode);
    let meant = |class: &Class| written.classes.iter().any(|name| name == class_name(*class));
    let classes: Vec<_> = Class::ALL.into_iter().filter(meant).collect();
    DuplicationConfig { mode: mode.unwrap_or_default(), classes: Classes::of(&classes) }
}

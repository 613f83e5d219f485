//! Parity and duplication.

use mwb_proto::bond::{Classes, DuplicationConfig, DuplicationMode, FecConfig, FecMode};
use mwb_proto::wire::Parity;
use mwb_proto::wire::v2::Class;

use super::Faults;
use crate::config::file;

/// Least parity per packet that means anything: `mode = "off"` is for none.
const REDUNDANCY_MIN: f64 = 0.01;

pub(super) fn fec(written: &file::Fec, faults: &mut Faults<'_>) -> FecConfig {
    let known = FecMode::ALL.into_iter().find(|mode| mode.name() == written.mode);
    if known.is_none() {
        let fix = format!("write one of {}", FecMode::ALL.map(FecMode::name).join(", "));
        faults.add("fec.mode", format!("{:?} is no way to send parity", written.mode), fix);
    }
    let small = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
    let data = faults.range("fec.data_shards", written.data_shards, 1, u64::from(Parity::DATA_MAX));
    let parity = faults.range("fec.parity_shards", written.parity_shards, 1, u64::from(Parity::PARITY_MAX));
    if !(REDUNDANCY_MIN..=1.0).contains(&written.redundancy) {
        let problem = format!("{} is out of range", written.redundancy);
        faults.add("fec.redundancy", problem, format!("write a number from {REDUNDANCY_MIN} to 1.0"));
    }
    FecConfig {
        mode: known.unwrap_or_default(),
        data_shards: small(data),
        parity_shards: small(parity),
        redundancy: written.redundancy,
    }
}

pub(super) fn duplication(written: &file::Duplication, faults: &mut Faults<'_>) -> DuplicationConfig {
    let known = DuplicationMode::ALL.into_iter().find(|mode| mode.name() == written.mode);
    if known.is_none() {
        let fix = format!("write one of {}", DuplicationMode::ALL.map(DuplicationMode::name).join(", "));
        faults.add("duplication.mode", format!("{:?} is no way to duplicate", written.mode), fix);
    }
    let mut classes = Vec::new();
    for (index, name) in written.classes.iter().enumerate() {
        match Class::ALL.into_iter().find(|class| class_name(*class) == name) {
            Some(class) => classes.push(class),
            None => {
                let fix = format!("write one of {}", Class::ALL.map(class_name).join(", "));
                faults.add(format!("duplication.classes[{index}]"), format!("{name:?} is no class"), fix);
            }
        }
    }
    DuplicationConfig { mode: known.unwrap_or_default(), classes: Classes::of(&classes) }
}

fn class_name(class: Class) -> &'static str {
    match class {
        Class::BestEffort => "best_effort",
        Class::Background => "background",
        Class::Video => "video",
        Class::Voice => "voice",
    }
}

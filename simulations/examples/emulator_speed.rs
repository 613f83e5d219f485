//! How fast and how punctual the emulator is on this machine: two links of 300 Mbit/s with a real
//! TCP flow each.
//!
//! `cargo run --release -p mwb-sim --example emulator_speed [seconds] [mbit per link] [delay ms] [tick us]`
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use mwb_sim::lab::{self, Lab, LabOptions};
use mwb_sim::traffic::{self, FlowSpec};
use mwb_sim::wan::{DirectionSpec, LinkSpec};

fn main() -> Result<()> {
    lab::enter()?;
    let numbers: Vec<u64> = std::env::args().skip(1).map(|a| a.parse()).collect::<Result<_, _>>()?;
    let number = |index: usize, default| numbers.get(index).copied().unwrap_or(default);
    let (seconds, mbit, delay) = (number(0, 10), number(1, 300), number(2, 10));
    let _lock = lab::machine_lock()?;
    let both = DirectionSpec::mbit(mbit as f64).delay_ms(delay);
    let links: Vec<_> = ["a", "b"].map(|name| LinkSpec::symmetric(name, both.clone())).into();
    let mut options = LabOptions::default();
    options.emulator.tick = Duration::from_micros(number(3, options.emulator.tick.as_micros() as u64));
    let lab = Lab::edge_exit_with(&links, &options)?;
    let (edge, server) = (lab.host("edge"), lab.host("server"));
    let address = SocketAddr::new(server.address(), 5001);
    let _server = server.run(move || traffic::server(address))?;
    let flows: Vec<_> = edge
        .uplink_names()
        .into_iter()
        .map(|uplink| {
            edge.start(move || traffic::download(&FlowSpec::seconds(address, seconds).device(&uplink)))
        })
        .collect();
    let mut sum = 0.0;
    for (flow, link) in flows.into_iter().zip(lab.emulator().links()) {
        let flow = flow.join().context("a flow")?;
        let goodput = flow.goodput_mbit(Duration::from_secs(2.min(seconds / 2)));
        sum += goodput;
        println!(
            "link {link}: {goodput:.1} Mbit/s payload of {mbit}, {}, {} retransmits, longest gap {:.1} ms, {}",
            flow.congestion_control(),
            flow.retransmits(),
            flow.longest_gap.ms,
            flow.failure.as_deref().unwrap_or("complete"),
        );
        println!("  {:?}", lab.emulator().counters(link)?.down);
    }
    println!("sum: {sum:.1} Mbit/s; real-time scheduler: {}", lab.emulator().real_time()?);
    println!("{}", lab.emulator().lateness()?);
    Ok(())
}

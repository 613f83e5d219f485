//! Each promise of an emulated link, measured over real sockets in a lab.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and tells what it measured"
)]

use std::net::SocketAddr;
use std::time::Duration;

use mwb_sim::lab::{Host, Lab, MachineLock, in_lab_process, machine_lock};
use mwb_sim::traffic::{self, EchoResult, EchoSpec, FlowResult, FlowSpec, Server};
use mwb_sim::wan::{DirectionSpec, LinkSpec, QueueLimit, Trace, Way};

/// A lab with a test server on `server`.
struct Bench {
    lab: Lab,
    edge: Host,
    address: SocketAddr,
    _server: Server,
    _lock: MachineLock,
}

impl Bench {
    fn new(links: &[LinkSpec]) -> Self {
        let lock = machine_lock().unwrap();
        let lab = Lab::edge_exit(links).unwrap();
        let (edge, server) = (lab.host("edge"), lab.host("server"));
        let address = SocketAddr::new(server.address(), 5001);
        let started = server.run(move || traffic::server(address)).unwrap();
        Self { lab, edge, address, _server: started, _lock: lock }
    }

    fn one(both: DirectionSpec) -> Self {
        Self::new(&[LinkSpec::symmetric("link", both)])
    }

    fn echo(&self, rate: f64, millis: u64) -> EchoResult {
        let spec = EchoSpec::new(self.address, rate, 200, Duration::from_millis(millis));
        let result = self.edge.run(move || traffic::udp_echo(&spec)).unwrap();
        println!("{result:?}");
        result
    }

    fn flow(&self, download: bool, spec: FlowSpec) -> FlowResult {
        let work = move || if download { traffic::download(&spec) } else { traffic::upload(&spec) };
        let result = self.edge.run(work).unwrap();
        println!("{:.2} Mbit/s {result:?}", result.goodput_mbit(Duration::from_secs(1)));
        result
    }

    /// The emulator kept its own promise, or the figures mean nothing.
    fn punctual(&self) {
        let lateness = self.lab.emulator().lateness().unwrap();
        println!("{lateness}");
        for (name, counters) in self.lab.emulator().all_counters().unwrap() {
            for way in [counters.up, counters.down] {
                assert_eq!((way.dropped_emulator, way.dropped_socket), (0, 0), "{name} {way:?}");
            }
        }
    }
}

/// Goodput of the best second of a flow, Mbit/s: what the link gives when nothing else holds up the
/// machine. The machine may be busy, so only this and bounds that a delay cannot break are asserted.
fn best_second(flow: &FlowResult) -> f64 {
    flow.bytes_per_100ms.windows(10).map(|w| w.iter().sum::<u64>() as f64 * 8e-6).fold(0.0, f64::max)
}

#[test]
fn each_link_alone_gives_its_rate_and_delay() {
    in_lab_process("each_link_alone_gives_its_rate_and_delay", || {
        let link = |name, mbit, delay| LinkSpec::symmetric(name, DirectionSpec::mbit(mbit).delay_ms(delay));
        let bench = Bench::new(&[link("dsl", 50.0, 10), link("lte", 20.0, 30)]);
        for (uplink, mbit, rtt) in [("up0", 50.0, 20.0), ("up1", 20.0, 60.0)] {
            let spec = EchoSpec::new(bench.address, 100.0, 200, Duration::from_secs(1)).device(uplink);
            let echo = bench.edge.run(move || traffic::udp_echo(&spec)).unwrap();
            assert_eq!(echo.received, 100);
            assert!((rtt..rtt + 5.0).contains(&echo.min_ms), "{echo:?}");
            for download in [true, false] {
                let flow = bench.flow(download, FlowSpec::seconds(bench.address, 4).device(uplink));
                assert!(flow.complete(), "{flow:?}");
                // At most 1448 of 1500 bytes are payload.
                let goodput = flow.goodput_mbit(Duration::from_secs(1));
                let best = best_second(&flow);
                assert!(goodput < 0.97 * mbit && best > 0.9 * mbit, "{uplink} {goodput} {best}");
                let sender = &flow.sender;
                let as_asked =
                    sender.congestion_control == "cubic" && sender.congestion_control_refused.is_none();
                let refused = sender.congestion_control_refused.is_some();
                assert!(as_asked || refused, "{sender:?}");
            }
        }
        // Nothing of one link went over the other, and both are counted in IP bytes.
        let lte = bench.lab.emulator().counters("lte").unwrap();
        assert!(lte.down.bytes < 20_000_000 && lte.down.packets > 5_000, "{lte:?}");
        bench.punctual();
    });
}

#[test]
fn loss_and_jitter_are_as_specified() {
    in_lab_process("loss_and_jitter_are_as_specified", || {
        let bench = Bench::one(DirectionSpec::default().delay_ms(5).jitter_ms(10).loss(0.05));
        let echo = bench.echo(1000.0, 4000);
        // Lost on the way there or back: 1 - 0.95^2.
        assert!((0.075..0.125).contains(&echo.loss), "{echo:?}");
        assert!((10.0..16.0).contains(&echo.min_ms), "{echo:?}");
        assert!(echo.p50_ms > 16.0 && echo.p99_ms > 24.0, "{echo:?}");
        assert_eq!((echo.reordered, echo.duplicates), (0, 0));
        let counters = bench.lab.emulator().counters("link").unwrap();
        let lost = counters.up.dropped_loss + counters.down.dropped_loss;
        assert!(lost.abs_diff(echo.sent - echo.received) < 6, "{counters:?}");
        bench.punctual();
    });
}

#[test]
fn a_cut_is_a_black_hole_and_ends() {
    in_lab_process("a_cut_is_a_black_hole_and_ends", || {
        let bench = Bench::one(DirectionSpec::default().delay_ms(2));
        let control = bench.lab.emulator();
        assert_eq!(bench.echo(100.0, 300).received, 30);
        control.cut("link").unwrap();
        assert_eq!(bench.echo(100.0, 300).received, 0);
        let dark = control.counters("link").unwrap();
        // The kernel adds a few packets of its own (multicast listener reports).
        assert!((30..36).contains(&dark.up.dropped_cut) && dark.down.dropped_cut < 6, "{dark:?}");
        control.restore("link").unwrap();
        // One way only: the packets get there, the answers do not come back.
        control.cut_way("link", Way::Down).unwrap();
        assert_eq!(bench.echo(100.0, 300).received, 0);
        let half = control.counters("link").unwrap();
        assert!(half.up.dropped_cut < 36 && (30..36).contains(&half.down.dropped_cut), "{half:?}");
        control.restore("link").unwrap();
        // In the middle of traffic it is a pause of its own length.
        let running = {
            let spec = EchoSpec::new(bench.address, 200.0, 100, Duration::from_millis(1500));
            bench.edge.start(move || traffic::udp_echo(&spec).unwrap())
        };
        std::thread::sleep(Duration::from_millis(400));
        control.cut("link").unwrap();
        std::thread::sleep(Duration::from_millis(500));
        control.restore("link").unwrap();
        let echo = running.join();
        assert!((480.0..1500.0).contains(&echo.longest_pause_ms), "{echo:?}");
        assert!((300.0..1100.0).contains(&echo.longest_pause_at_ms), "{echo:?}");
        assert!(control.cut("no such link").is_err());
        bench.punctual();
    });
}

#[test]
fn the_queue_is_bounded_and_drops() {
    in_lab_process("the_queue_is_bounded_and_drops", || {
        let queue = Duration::from_millis(50);
        let bench = Bench::one(DirectionSpec::mbit(20.0).delay_ms(5).queue(QueueLimit::Time(queue)));
        let flow = FlowSpec::seconds(bench.address, 4);
        let running = bench.edge.start(move || traffic::download(&flow).unwrap());
        std::thread::sleep(Duration::from_millis(1000));
        let echo = bench.echo(200.0, 2500);
        let flow = running.join();
        assert!(flow.complete() && flow.retransmits() > 0, "{flow:?}");
        let down = bench.lab.emulator().counters("link").unwrap().down;
        assert!(down.queue_bytes_max <= 125_000 && down.queue_bytes_max > 115_000, "{down:?}");
        assert!(down.dropped_queue > 0, "{down:?}");
        // Propagation both ways, and the full queue one way.
        assert!(echo.max_ms > 40.0 && echo.min_ms < 65.0, "{echo:?}");
        bench.punctual();
    });
}

#[test]
fn rates_change_while_traffic_flows() {
    in_lab_process("rates_change_while_traffic_flows", || {
        let spec = |mbit| DirectionSpec::mbit(mbit).delay_ms(5).queue(QueueLimit::Bytes(60_000));
        let bench = Bench::one(spec(10.0));
        let flow = FlowSpec::seconds(bench.address, 6);
        let running = bench.edge.start(move || traffic::download(&flow).unwrap());
        std::thread::sleep(Duration::from_secs(3));
        bench.lab.emulator().set("link", Way::Down, spec(30.0)).unwrap();
        let flow = running.join();
        let mbit = |from: usize, to: usize| {
            flow.bytes_per_100ms[from..to].iter().sum::<u64>() as f64 * 8e-5 / (to - from) as f64
        };
        println!("{:.1} then {:.1} Mbit/s", mbit(10, 29), mbit(45, 60));
        let best = |from: usize, to: usize| (from..to - 5).map(|i| mbit(i, i + 5)).fold(0.0, f64::max);
        assert!(mbit(10, 29) < 10.0 && best(10, 29) > 8.5, "{flow:?}");
        assert!(mbit(45, 60) < 30.0 && best(45, 60) > 22.0, "{flow:?}");
        bench.punctual();
    });
}

#[test]
fn traces_decide_when_packets_pass_and_restart() {
    in_lab_process("traces_decide_when_packets_pass_and_restart", || {
        // 24 Mbit/s for a second, then a second of nothing.
        let mut millis: Vec<u32> = (0..2000).map(|i| i / 2).collect();
        millis.push(2000);
        let trace = Trace::new(millis).unwrap();
        let down = DirectionSpec::traced(trace).delay_ms(5).queue(QueueLimit::Bytes(300_000));
        let bench = Bench::new(&[LinkSpec::new("link", DirectionSpec::default().delay_ms(5), down)]);
        std::thread::sleep(Duration::from_millis(700));
        bench.lab.emulator().restart_traces().unwrap();
        let flow = bench.flow(true, FlowSpec::seconds(bench.address, 4));
        let bins = &flow.bytes_per_100ms;
        let mbit =
            |from: usize, to: usize| bins[from..to].iter().sum::<u64>() as f64 * 8e-5 / (to - from) as f64;
        assert!(mbit(2, 10) > 10.0 && mbit(22, 30) > 10.0, "{bins:?}");
        assert!(mbit(12, 18) < 0.5 && mbit(32, 38) < 0.5, "{bins:?}");
        assert!((900.0..1500.0).contains(&flow.longest_gap.ms), "{flow:?}");
        bench.punctual();
    });
}

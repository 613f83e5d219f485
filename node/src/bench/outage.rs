//! What happens to a running download when a link dies, and when a slow one returns.
//!
//! Links die as they do at a provider: what is sent vanishes, the interface stays up.

use std::fmt::Write;
use std::time::Duration;

use mwb_sim::lab::Host;
use mwb_sim::traffic::{Amount, EchoResult, EchoSpec, FlowResult, FlowSpec, udp_echo};
use serde::Serialize;

use super::report::{Figure, Health, Measured, Wire, pause};
use super::stage::{Stage, check};
use super::timeline::Timeline;
use super::ways::Way;
use super::{CUT, mptcp};

/// When a link dies, and for how long.
const DEAD_FROM: Duration = Duration::from_secs(6);
const DEAD_FOR: Duration = Duration::from_secs(4);
/// When the slow link returns.
const RETURN_AT: Duration = Duration::from_secs(8);
/// Before such a flow: until the nodes know that the link is dead.
const KNOWN_DEAD: Duration = Duration::from_secs(3);
/// What the end of a flow is.
const LAST: Duration = Duration::from_secs(4);
/// Echoes per second: their interval is the grain of its pauses.
const ECHO_RATE: f64 = 200.0;
const ECHO_BYTES: usize = 100;
/// One with its IPv4 and UDP headers.
const ECHO_WIRE: u64 = ECHO_BYTES as u64 + 28;
/// A link is back when it carries this share of its rate.
const BACK: f64 = 0.8;

/// One run of cuts.
#[derive(Debug, Serialize)]
pub(super) struct CutRun {
    /// When each link died in its flow, and for how long.
    dead_from_s: f64,
    dead_for_s: f64,
    /// One entry for each link.
    cuts: Vec<Cut>,
    /// Why Multipath TCP was not measured, if so.
    mptcp_skipped: Option<String>,
    emulator: Health,
}

/// A download while one link is dead for a while.
#[derive(Debug, Serialize)]
struct Cut {
    link: String,
    bond: CutFlow,
    /// Of an echo through the bond beside it.
    echo_pause_ms: f64,
    echo_max_ms: f64,
    echo_lost: u64,
    /// The kernel's Multipath TCP over the raw links, cut in the same way.
    mptcp: Option<CutFlow>,
}

/// What the cut did to one TCP flow.
#[derive(Debug, Serialize)]
struct CutFlow {
    /// Longest time without a delivery to the reader from the cut to the return; zero when none reached 50 ms.
    pause_ms: f64,
    /// The same from the return on.
    pause_after_ms: f64,
    mbit_before: f64,
    mbit_during: f64,
    mbit_after: f64,
    /// Seconds from the return until the link carried 80 % of its rate for half a second.
    back_s: Option<f64>,
    wire: Wire,
    timeline: Timeline,
}

/// Cuts each link once under a download.
///
/// # Errors
/// When a flow of the bond or a node fails.
pub(super) fn cuts(stage: &Stage<'_>) -> anyhow::Result<CutRun> {
    let edge = stage.lab().host("edge");
    let names: Vec<String> = stage.profile().links.iter().map(|link| link.name.clone()).collect();
    let rivals = mptcp::prepare(stage).and_then(|server| {
        let spec = mptcp::spec(stage, &server);
        names.iter().map(|link| Ok(cut(stage, &edge, link, &spec, "kernel MPTCP", None)?.0)).collect()
    });
    let (rivals, mptcp_skipped): (Vec<CutFlow>, _) = match rivals {
        Ok(rivals) => (rivals, None),
        Err(error) => {
            let why = format!("{error:#}");
            stage.say(&format!("SKIPPED: kernel MPTCP: {why}"));
            (Vec::new(), Some(why))
        }
    };
    let mut rivals = rivals.into_iter();
    let mesh = stage.mesh(None)?;
    let mut cuts = Vec::new();
    for link in names {
        let length = length(stage) - CUT;
        let echo = EchoSpec::new(stage.server(), ECHO_RATE, ECHO_BYTES, length);
        let spec = stage.flow(length);
        let (bond, echo) = cut(stage, &edge, &link, &spec, "bond", Some(echo))?;
        let echo = echo.unwrap_or_default();
        cuts.push(Cut {
            link,
            bond,
            echo_pause_ms: echo.longest_pause_ms,
            echo_max_ms: echo.max_ms,
            echo_lost: echo.sent.saturating_sub(echo.received),
            mptcp: rivals.next(),
        });
    }
    let emulator = stage.health()?;
    mesh.stop()?;
    let (dead_from_s, dead_for_s) = (DEAD_FROM.as_secs_f64(), DEAD_FOR.as_secs_f64());
    Ok(CutRun { dead_from_s, dead_for_s, cuts, mptcp_skipped, emulator })
}

/// The length that was asked for, or what it takes to see the time after the return.
fn length(stage: &Stage<'_>) -> Duration {
    stage.settings().length.max(DEAD_FROM + DEAD_FOR + LAST)
}

/// One download under which a link is dead for a while, and the echo beside it.
fn cut(
    stage: &Stage<'_>,
    edge: &Host,
    link: &str,
    spec: &FlowSpec,
    over: &str,
    echo: Option<EchoSpec>,
) -> anyhow::Result<(CutFlow, Option<EchoResult>)> {
    let title = format!("{over}, download, {link} is cut");
    let length = length(stage);
    let spec = FlowSpec { amount: Amount::Duration(length), ..spec.clone() };
    let echo = echo.map(|echo| {
        move || {
            std::thread::sleep(CUT);
            udp_echo(&echo)
        }
    });
    let ((flow, echo), carried) = stage.counted(&title, || {
        let running = edge.start(move || Way::Download.flow(&spec));
        let echo = echo.map(|echo| edge.start(echo));
        std::thread::sleep(DEAD_FROM);
        stage.emulator().cut(link)?;
        std::thread::sleep(DEAD_FOR);
        stage.emulator().restore(link)?;
        let flow = check(running.join()?, "download")?;
        Ok((flow, echo.map(|echo| echo.join()).transpose()?))
    })?;
    let echo_bytes = echo.as_ref().map_or(0, |echo| echo.received * ECHO_WIRE);
    let wire = Wire::new(flow.total_bytes, echo_bytes, &carried.links, Way::Download);
    Ok((CutFlow::new(stage, link, &flow, wire, carried.timeline, length), echo))
}

impl CutFlow {
    fn new(
        stage: &Stage<'_>,
        link: &str,
        flow: &FlowResult,
        wire: Wire,
        timeline: Timeline,
        length: Duration,
    ) -> Self {
        let back = DEAD_FROM + DEAD_FOR;
        Self {
            pause_ms: flow.longest_gap_ms_between(DEAD_FROM, back),
            pause_after_ms: flow.longest_gap_ms_between(back, length),
            mbit_before: flow.goodput_mbit_between(CUT, DEAD_FROM),
            mbit_during: flow.goodput_mbit_between(DEAD_FROM, back),
            mbit_after: flow.goodput_mbit_between(back, length),
            back_s: back_after(stage, link, &timeline, back),
            wire,
            timeline: timeline.mark(DEAD_FROM, "cut").mark(back, "back"),
        }
    }
}

/// Seconds from `since` until a link carries its share again.
fn back_after(stage: &Stage<'_>, link: &str, timeline: &Timeline, since: Duration) -> Option<f64> {
    let index = stage.profile().links.iter().position(|other| other.name == link)?;
    timeline.reaches(index, since, BACK * stage.profile().links[index].mbit)
}

/// Seconds for people.
fn seconds(value: Option<f64>) -> String {
    value.map_or("not".to_owned(), |value| format!("{value:.1}"))
}

impl Measured for CutRun {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Self { dead_from_s, dead_for_s, .. } = self;
        writeln!(
            out,
            "  one download; the link is a black hole from {dead_from_s:.0} s for {dead_for_s:.0} s"
        )?;
        let titles = ["pause ms", "after ms", "before", "during", "after", "back s"];
        let titles: String = titles.iter().map(|title| format!("{title:>10}")).collect();
        writeln!(out, "  {:<22}{titles}", "cut, Mbit/s")?;
        for cut in &self.cuts {
            for (name, flow) in [("bond", Some(&cut.bond)), ("kernel MPTCP", cut.mptcp.as_ref())] {
                let Some(flow) = flow else { continue };
                let CutFlow { mbit_before, mbit_during, mbit_after, .. } = flow;
                writeln!(
                    out,
                    "  {:<22}{:>10}{:>10}{mbit_before:>10.1}{mbit_during:>10.1}{mbit_after:>10.1}{:>10}",
                    format!("{}, {name}", cut.link),
                    pause(flow.pause_ms),
                    pause(flow.pause_after_ms),
                    seconds(flow.back_s),
                )?;
            }
            let Cut { echo_pause_ms, echo_max_ms, echo_lost, .. } = cut;
            writeln!(
                out,
                "    UDP echo through the bond: longest pause {echo_pause_ms:.0} ms, largest round trip \
                 {echo_max_ms:.0} ms, {echo_lost} lost"
            )?;
        }
        if let Some(why) = &self.mptcp_skipped {
            writeln!(out, "  kernel MPTCP: SKIPPED, {why}")?;
        }
        self.emulator.write(out)
    }

    fn timelines(&self) -> Vec<&Timeline> {
        self.cuts
            .iter()
            .flat_map(|cut| [Some(&cut.bond), cut.mptcp.as_ref()])
            .flatten()
            .map(|f| &f.timeline)
            .collect()
    }

    fn figures(&self) -> Vec<Figure> {
        let figure = |cut: &Cut, name: &str, value| (format!("{} is cut: {name}", cut.link), value);
        let of = |cut: &Cut| {
            let mptcp =
                cut.mptcp.as_ref().map(|flow| figure(cut, "pause of kernel MPTCP, ms", flow.pause_ms));
            let bond = figure(cut, "pause of the bond, ms", cut.bond.pause_ms);
            let echo = figure(cut, "pause of the echo, ms", cut.echo_pause_ms);
            [Some(bond), mptcp, Some(echo)].into_iter().flatten()
        };
        self.cuts.iter().flat_map(of).collect()
    }
}

/// A download during which the last link of the profile returns.
#[derive(Debug, Serialize)]
pub(super) struct ReturnRun {
    link: String,
    /// From the start of the flow.
    returns_at_s: f64,
    mbit_without: f64,
    /// From the return to the end.
    mbit_after: f64,
    /// The last four seconds of that.
    mbit_last: f64,
    /// Seconds from the return until the link carried 80 % of its rate for half a second.
    back_s: Option<f64>,
    /// Longest time without a delivery to the reader after the return; zero when none reached 50 ms.
    pause_after_ms: f64,
    wire: Wire,
    timeline: Timeline,
    emulator: Health,
}

/// Lets the last link return to a running download.
///
/// # Errors
/// When a flow or a node fails.
pub(super) fn returns(stage: &Stage<'_>) -> anyhow::Result<ReturnRun> {
    let edge = stage.lab().host("edge");
    let link = stage.profile().links.last().map(|link| link.name.clone()).unwrap_or_default();
    let mesh = stage.mesh(None)?;
    stage.emulator().cut(&link)?;
    std::thread::sleep(KNOWN_DEAD);
    let end = RETURN_AT + stage.settings().length.max(2 * LAST);
    let spec = stage.flow(end);
    let title = format!("bond, download, {link} returns");
    let (flow, carried) = stage.counted(&title, || {
        let running = edge.start(move || Way::Download.flow(&spec));
        std::thread::sleep(RETURN_AT);
        stage.emulator().restore(&link)?;
        check(running.join()?, "download")
    })?;
    let emulator = stage.health()?;
    mesh.stop()?;
    Ok(ReturnRun {
        returns_at_s: RETURN_AT.as_secs_f64(),
        mbit_without: flow.goodput_mbit_between(CUT, RETURN_AT),
        mbit_after: flow.goodput_mbit_between(RETURN_AT, end),
        mbit_last: flow.goodput_mbit_between(end - LAST, end),
        back_s: back_after(stage, &link, &carried.timeline, RETURN_AT),
        pause_after_ms: flow.longest_gap_ms_between(RETURN_AT, end),
        wire: Wire::new(flow.total_bytes, 0, &carried.links, Way::Download),
        timeline: carried.timeline.mark(RETURN_AT, format!("{link} is back")),
        link,
        emulator,
    })
}

impl Measured for ReturnRun {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Self { link, returns_at_s, mbit_without, mbit_after, mbit_last, .. } = self;
        writeln!(out, "  one download over the bond; {link} is dead, and returns after {returns_at_s:.0} s")?;
        writeln!(out, "  {:<34}{mbit_without:>10.2}", "without it, Mbit/s")?;
        writeln!(out, "  {:<34}{mbit_after:>10.2}", "from its return on")?;
        writeln!(out, "  {:<34}{mbit_last:>10.2}", "the last 4 s")?;
        writeln!(out, "  {:<34}{:>10}", "at 80 % of its rate after, s", seconds(self.back_s))?;
        writeln!(out, "  {:<34}{:>10}", "longest pause after it, ms", pause(self.pause_after_ms))?;
        let Wire { along_percent, against_percent } = self.wire;
        writeln!(out, "  {:<34}{along_percent:>10.1}", "headers and repeats, % of it")?;
        writeln!(out, "  {:<34}{against_percent:>10.1}", "the other way, % of it")?;
        self.emulator.write(out)
    }

    fn timelines(&self) -> Vec<&Timeline> {
        vec![&self.timeline]
    }

    fn figures(&self) -> Vec<Figure> {
        let back = self.back_s.map(|back| ("at 80 % of its rate after, s".to_owned(), back));
        let last = ("the last 4 s / without it".to_owned(), self.mbit_last / self.mbit_without);
        let after = ("from its return on / without it".to_owned(), self.mbit_after / self.mbit_without);
        [Some(after), Some(last), back].into_iter().flatten().collect()
    }
}

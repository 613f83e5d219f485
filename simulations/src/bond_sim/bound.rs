//! What a bond could reach at the best, from its scenario alone: a fluid that fills every link.

use std::time::Duration;

use super::{Action, Scenario};
use crate::tcp_model::PAYLOAD;
use crate::wan::trace::OPPORTUNITY_BYTES;
use crate::wan::{DirectionSpec, Way};

/// TCP payload of a raw link's bit: 1448 of 1500 bytes.
const RAW: f64 = 1448.0 / 1500.0;
/// What the tunnel's headers leave of that.
const TUNNEL: f64 = 0.956;
/// Grain of the sum over time.
const STEP: Duration = Duration::from_millis(1);

/// Goodput that no bond exceeds, Mbit/s.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Bound {
    /// Of all links.
    pub all: f64,
    /// Of the links whose delay is so near to the least that the bond does not park them, and of what the windows of
    /// the connections allow over these.
    pub near: f64,
}

/// One direction of a link as the script leaves it.
struct State {
    spec: DirectionSpec,
    /// When its trace began.
    since: Duration,
    cut: bool,
    gone: bool,
    limit: f64,
}

impl Scenario {
    /// The sum over the links of rate x 0.956 of a raw link's goodput x (1 - loss), over the time from `from` to `to`
    /// in which each of them had its rate: cuts, changes, limits, removed paths and recorded links are accounted.
    /// What the other way costs (acknowledgements and reports) is not.
    pub fn bound_mbit(&self, way: Way, from: Duration, to: Duration) -> Bound {
        let means: Vec<f64> = (0..self.links.len()).map(|link| self.link_mbit(link, way, from, to)).collect();
        let delay = |link: usize, way: Way| match way {
            Way::Up => self.links[link].up.delay,
            Way::Down => self.links[link].down.delay,
        };
        let back = if way == Way::Up { Way::Down } else { Way::Up };
        let used = || (0..self.links.len()).filter(|&link| means[link] > 0.0);
        let least = used().map(|link| delay(link, way)).min().unwrap_or_default();
        let near: Vec<usize> =
            used().filter(|&link| delay(link, way) <= least + self.sender.spread_max).collect();
        let slowest = near.iter().map(|&link| delay(link, way)).max().unwrap_or_default();
        let answer = used().map(|link| delay(link, back)).min().unwrap_or_default();
        let flows = self.flows.iter().filter(|flow| flow.way == way).count() as f64;
        let windows = flows * (6 << 20) as f64 * 8e-6 / (slowest + answer).as_secs_f64().max(1e-3);
        Bound {
            all: means.iter().sum(),
            near: near.iter().map(|&link| means[link]).sum::<f64>().min(windows),
        }
    }

    fn link_mbit(&self, link: usize, way: Way, from: Duration, to: Duration) -> f64 {
        let spec = match way {
            Way::Up => self.links[link].up.clone(),
            Way::Down => self.links[link].down.clone(),
        };
        let mut state = State { spec, since: Duration::ZERO, cut: false, gone: false, limit: f64::INFINITY };
        let mut script: Vec<_> = self.script.iter().collect();
        script.sort_by_key(|step| step.at);
        let mut script = script.into_iter().peekable();
        let (mut now, mut bits) = (Duration::ZERO, 0.0);
        while now < to {
            while let Some(step) = script.next_if(|step| step.at <= now) {
                state.apply(&step.what, link, way, now);
            }
            if now >= from {
                bits += state.bits(now);
            }
            now += STEP;
        }
        bits * 1e-6 * RAW * TUNNEL / (to - from).as_secs_f64()
    }
}

impl State {
    fn apply(&mut self, action: &Action, link: usize, way: Way, now: Duration) {
        match action {
            Action::Cut(i) if *i == link => self.cut = true,
            Action::CutWay(i, w) if (*i, *w) == (link, way) => self.cut = true,
            Action::Restore(i) if *i == link => self.cut = false,
            Action::Set(i, w, spec) if (*i, *w) == (link, way) => {
                self.spec = (**spec).clone();
                self.since = now;
            }
            Action::Limit(i, w, limit) if (*i, *w) == (link, way) => {
                self.limit = limit.map_or(f64::INFINITY, |rate| rate as f64);
            }
            Action::RemovePath(i) if *i == link => self.gone = true,
            Action::AddPath(i) if *i == link => self.gone = false,
            _ => {}
        }
    }

    /// Bits that pass in the step at `now`.
    fn bits(&self, now: Duration) -> f64 {
        if self.cut || self.gone {
            return 0.0;
        }
        let offered = match &self.spec.trace {
            Some(trace) => {
                let at = ((now - self.since).as_millis() % trace.period().as_millis()) as u32;
                let from = trace.millis().partition_point(|&ms| ms < at);
                let to = trace.millis().partition_point(|&ms| ms <= at);
                ((to - from) * OPPORTUNITY_BYTES * 8) as f64
            }
            None => self.spec.rate.unwrap_or(0) as f64 * STEP.as_secs_f64(),
        };
        let loss = 1.0 - (1.0 - self.spec.loss) * (1.0 - self.spec.burst.map_or(0.0, |burst| burst.mean()));
        offered.min(self.limit * STEP.as_secs_f64()) * (1.0 - loss)
    }
}

/// The share of a wire bit that is payload in the model's segments, for comparison: 1372 of 1488 bytes.
const _: () = assert!(PAYLOAD == 1372);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wan::{LinkSpec, Trace};

    const WINDOW: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(12));

    fn bound(scenario: &Scenario) -> Bound {
        scenario.bound_mbit(Way::Down, WINDOW.0, WINDOW.1)
    }

    fn link(mbit: f64, delay_ms: u64) -> LinkSpec {
        LinkSpec::symmetric("a", DirectionSpec::mbit(mbit).delay_ms(delay_ms))
    }

    #[test]
    fn cuts_limits_and_loss_count_for_as_long_as_they_last() {
        let mut lossy = link(10.0, 10);
        lossy.down.loss = 0.1;
        let scenario = Scenario::new(vec![link(10.0, 10), lossy, link(10.0, 10)])
            .at(7000, Action::Cut(0))
            .at(0, Action::Limit(2, Way::Down, Some(2_000_000)));
        let wanted = (5.0 + 9.0 + 2.0) * RAW * TUNNEL;
        assert!((bound(&scenario).all - wanted).abs() < 0.05, "{:?} {wanted}", bound(&scenario));
    }

    #[test]
    fn a_recorded_link_counts_what_it_gave_in_the_window() {
        let trace = Trace::new((0..20_000).filter(|ms| ms % 10_000 < 5000).collect()).expect("sorted");
        let mut recorded = link(10.0, 10);
        recorded.down.trace = Some(trace);
        // Of the ten seconds from 2 s on, 3 + 2 bring 12 Mbit/s.
        let got = bound(&Scenario::new(vec![recorded])).all;
        assert!((got - 6.0 * RAW * TUNNEL).abs() < 0.1, "{got}");
    }

    #[test]
    fn a_far_link_and_full_windows_bound_what_is_near() {
        let scenario = Scenario::new(vec![link(10.0, 10), link(20.0, 200)]);
        assert!((bound(&scenario).near - 10.0 * RAW * TUNNEL).abs() < 0.05);
        let scenario = Scenario::new(vec![link(1000.0, 200)]);
        assert!((bound(&scenario).near - 48.0 * 1.048_576 / 0.4).abs() < 1.0, "{:?}", bound(&scenario));
    }
}

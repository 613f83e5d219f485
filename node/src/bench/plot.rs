//! Timelines as an SVG picture: one panel each, a line per link and one for their sum.
//!
//! Colours are those of Okabe and Ito ("Color Universal Design", 2008), which people with any colour vision tell
//! apart; dashes tell the lines apart without colours.

use std::fmt::{self, Write};

use super::timeline::{Point, Timeline};

/// Sizes in pixels.
const WIDTH: f64 = 960.0;
const PANEL: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 170.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// About as many lines across.
const TICKS: f64 = 6.0;
/// Points that one drawn value is the mean of: a half second's flicker is not what a plot is for.
const SMOOTH: usize = 3;
/// The sum is black and solid.
const TOTAL: (&str, &str) = ("#000000", "");
const COLOURS: [&str; 7] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C00"];
const DASHES: [&str; 4] = ["", "7 3", "2 3", "9 3 2 3"];

/// Draws the timelines one below the other.
pub(super) fn svg(heading: &str, timelines: &[&Timeline]) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = draw(&mut out, heading, timelines);
    out
}

fn draw(out: &mut String, heading: &str, timelines: &[&Timeline]) -> fmt::Result {
    let height = TOP + PANEL * timelines.len() as f64;
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">"
    )?;
    writeln!(out, "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>")?;
    text(out, LEFT, 24.0, "font-size=\"16\" font-weight=\"bold\"", heading)?;
    for (index, timeline) in timelines.iter().enumerate() {
        Panel::new(timeline, TOP + PANEL * index as f64).draw(out)?;
    }
    writeln!(out, "</svg>")
}

/// One timeline's place on the picture.
struct Panel<'a> {
    timeline: &'a Timeline,
    /// Upper edge of the panel.
    top: f64,
    seconds: f64,
    /// Upper end of the scale.
    mbit: f64,
    mbit_step: f64,
    /// Whether most went upwards: that way is drawn.
    upload: bool,
}

impl<'a> Panel<'a> {
    fn new(timeline: &'a Timeline, top: f64) -> Self {
        let sum = |upload| timeline.points.iter().map(|point| total(point, upload)).sum::<f64>();
        let upload = sum(true) > sum(false);
        let most = smooth(timeline, |point| total(point, upload)).map(|(_, mbit)| mbit).fold(1.0, f64::max);
        let mbit_step = step(most);
        let seconds = timeline.points.last().map_or(1.0, |point| point.at_s.max(1.0));
        Self { timeline, top, seconds, mbit: (most / mbit_step).ceil() * mbit_step, mbit_step, upload }
    }

    fn x(&self, seconds: f64) -> f64 {
        LEFT + seconds / self.seconds * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, mbit: f64) -> f64 {
        self.bottom() - mbit / self.mbit * (PANEL - TOP - BOTTOM)
    }

    fn bottom(&self) -> f64 {
        self.top + PANEL - BOTTOM
    }

    fn draw(&self, out: &mut String) -> fmt::Result {
        text(out, LEFT, self.top + TOP - 14.0, "font-weight=\"bold\"", &self.timeline.title)?;
        self.axes(out)?;
        for mark in &self.timeline.marks {
            let (x, top) = (self.x(mark.at_s), self.y(self.mbit));
            line(out, [x, top, x, self.bottom()], "stroke=\"#555555\" stroke-dasharray=\"4 4\"")?;
            text(out, x + 4.0, top + 12.0, "fill=\"#555555\"", &mark.text)?;
        }
        let links = self.timeline.links.len();
        for (index, name) in self.timeline.links.iter().enumerate() {
            let style = (COLOURS[index % COLOURS.len()], DASHES[index % DASHES.len()]);
            let rates = smooth(self.timeline, |point| {
                point
                    .mbit
                    .get(index)
                    .map_or(0.0, |ways| if self.upload { ways.upload } else { ways.download })
            });
            self.curve(out, style, 1.6, rates, index, name)?;
        }
        if links > 1 {
            let rates = smooth(self.timeline, |point| total(point, self.upload));
            self.curve(out, TOTAL, 2.2, rates, links, "total")?;
        }
        Ok(())
    }

    /// Frame, grid and scales.
    fn axes(&self, out: &mut String) -> fmt::Result {
        let right = self.x(self.seconds);
        for number in 0..=(self.mbit / self.mbit_step).round() as u32 {
            let mbit = f64::from(number) * self.mbit_step;
            let y = self.y(mbit);
            line(out, [LEFT, y, right, y], "stroke=\"#dddddd\"")?;
            text(out, LEFT - 8.0, y + 4.0, "text-anchor=\"end\"", &format!("{}", round(mbit)))?;
        }
        let every = step(self.seconds);
        for number in 0..=(self.seconds / every + 1e-9).floor() as u32 {
            let at = f64::from(number) * every;
            let x = self.x(at);
            line(out, [x, self.bottom(), x, self.bottom() + 5.0], "stroke=\"#000000\"")?;
            text(out, x, self.bottom() + 19.0, "text-anchor=\"middle\"", &format!("{}", round(at)))?;
        }
        line(out, [LEFT, self.bottom(), right, self.bottom()], "stroke=\"#000000\"")?;
        line(out, [LEFT, self.y(self.mbit), LEFT, self.bottom()], "stroke=\"#000000\"")?;
        let middle = f64::midpoint(LEFT, right);
        text(out, middle, self.bottom() + 37.0, "text-anchor=\"middle\"", "time, s")?;
        let (x, y) = (20.0, f64::midpoint(self.y(self.mbit), self.bottom()));
        let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 {x} {y:.1})\"");
        text(out, x, y, &turned, "delivered, Mbit/s of IP packets")
    }

    /// One line and its entry of the legend.
    fn curve(
        &self,
        out: &mut String,
        (colour, dash): (&str, &str),
        width: f64,
        rates: impl Iterator<Item = (f64, f64)>,
        index: usize,
        name: &str,
    ) -> fmt::Result {
        let style = format!("stroke=\"{colour}\" stroke-width=\"{width}\" stroke-dasharray=\"{dash}\"");
        let style = style.replace(" stroke-dasharray=\"\"", "");
        write!(out, "<polyline fill=\"none\" {style} points=\"")?;
        for (seconds, mbit) in rates {
            write!(out, "{:.1},{:.1} ", self.x(seconds), self.y(mbit))?;
        }
        writeln!(out, "\"/>")?;
        let (x, y) = (WIDTH - RIGHT + 16.0, self.y(self.mbit) + 8.0 + 20.0 * index as f64);
        line(out, [x, y, x + 30.0, y], &style)?;
        text(out, x + 38.0, y + 4.0, "", name)
    }
}

fn total(point: &Point, upload: bool) -> f64 {
    point.mbit.iter().map(|ways| if upload { ways.upload } else { ways.download }).sum()
}

/// Means over a few points, each at the last one's time.
fn smooth(timeline: &Timeline, value: impl Fn(&Point) -> f64) -> impl Iterator<Item = (f64, f64)> {
    timeline.points.windows(SMOOTH).map(move |points| {
        let mean = points.iter().map(&value).sum::<f64>() / points.len() as f64;
        (points[points.len() - 1].at_s, mean)
    })
}

/// A round distance between ticks: 1, 2 or 5 times a power of ten.
fn step(most: f64) -> f64 {
    let rough = most / TICKS;
    let power = 10f64.powf(rough.log10().floor());
    let times = [1.0, 2.0, 5.0].into_iter().find(|times| times * power >= rough).unwrap_or(10.0);
    times * power
}

/// Without the noise of binary fractions.
fn round(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

fn line(out: &mut String, [x1, y1, x2, y2]: [f64; 4], style: &str) -> fmt::Result {
    writeln!(out, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {style}/>")
}

fn text(out: &mut String, x: f64, y: f64, style: &str, text: &str) -> fmt::Result {
    let safe = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{safe}</text>")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::ways::Ways;
    use super::*;

    #[test]
    fn scales_are_round_numbers() {
        for (most, expected) in [(80.0, 20.0), (47.0, 10.0), (1.0, 0.2), (366.0, 100.0), (15.0, 5.0)] {
            assert!((step(most) - expected).abs() < 1e-9, "{most}: {}", step(most));
        }
    }

    #[test]
    fn every_link_and_mark_is_drawn_and_names_cannot_break_it() {
        let points = (1..50).map(|i| Point {
            at_s: f64::from(i) / 10.0,
            mbit: vec![Ways { download: 10.0, upload: 1.0 }, Ways { download: f64::from(i), upload: 0.0 }],
        });
        let timeline = Timeline {
            title: "a & b".to_owned(),
            links: vec!["<one>".to_owned(), "two".to_owned()],
            points: points.collect(),
            marks: Vec::new(),
        };
        let timeline = timeline.mark(Duration::from_secs(2), "cut");
        let picture = svg("test", &[&timeline, &Timeline::default()]);
        assert_eq!(picture.matches("<polyline").count(), 3);
        for part in ["a &amp; b", "&lt;one&gt;", ">total<", ">cut<", "time, s", "Mbit/s"] {
            assert!(picture.contains(part), "{part}");
        }
        assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
        assert!(picture.ends_with("</svg>\n"));
    }
}

// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Cases as a picture: for each a bar of ours and of each peer, from the best peer's median, which is 1, to
//! their own, to the right where they are better. The scale is logarithmic, so that twice as good is as
//! far from 1 as half as good. A thin line is the range, a dot the median; figures are beside it.

use svg::Document;
use svg::node::Comment;
use svg::node::element::{Circle, Line, Rectangle, Text};

use super::case::{Better, Case, rounded};
use super::samples::Samples;

const WIDTH: f64 = 960.0;
/// Where bars are: names are to the left, figures to the right.
const LEFT: f64 = 190.0;
const RIGHT: f64 = 700.0;
const MARGIN: f64 = 12.0;
/// From a line of text to the next.
const LINE: f64 = 18.0;
/// Above and below the cases, for the scale.
const SCALE: f64 = 24.0;
const BAR: f64 = 10.0;
/// The scale shows so many doublings to either side, at least and at most. What is beyond is at its edge.
const DOUBLINGS: [f64; 2] = [1.0, 5.0];

const OURS: &str = "#b7410e";
const THEIRS: &str = "#8fa3b0";
const INK: &str = "#222222";
const GRID: &str = "#dddddd";
const MIDDLE: &str = "#888888";

/// Pictures are kept in the repository, where every file says this.
const LICENSE: &str = "SPDX-License-Identifier: Apache-2.0 OR MIT";

/// All cases as an SVG file, below lines of text that say how they were measured.
pub fn svg(cases: &[Case], heading: &[String]) -> String {
    let rows: Vec<Rows> = cases.iter().map(Rows::of).collect();
    let scale = Scale::for_all(&rows);
    let lines: usize = rows.iter().map(Rows::lines).sum();
    let top = MARGIN + LINE * heading.len() as f64 + SCALE;
    let bottom = top + LINE * lines as f64;
    let height = bottom + SCALE + MARGIN;
    let mut picture = Document::new()
        .set("viewBox", format!("0 0 {WIDTH} {height}"))
        .set("font-family", "sans-serif")
        .set("font-size", 12)
        .set("fill", INK)
        .add(Comment::new(LICENSE))
        .add(
            Rectangle::new()
                .set("width", "100%")
                .set("height", "100%")
                .set("fill", "white"),
        );
    for (number, line) in heading.iter().enumerate() {
        picture = picture.add(text(MARGIN, MARGIN + LINE * (number as f64 + 0.5), line));
    }
    for (ratio, label) in scale.ticks() {
        let x = scale.x(ratio);
        let colour = if ratio == 1.0 { MIDDLE } else { GRID };
        picture = picture.add(line([x, top], [x, bottom], colour));
        for y in [top - SCALE / 2.0, bottom + SCALE / 2.0] {
            picture = picture.add(text(x, y, &label).set("text-anchor", "middle"));
        }
    }
    let mut y = top;
    for case in &rows {
        let name = format!("{} [{}]", case.name, case.unit);
        picture = picture.add(text(MARGIN, y + LINE / 2.0, &name).set("font-weight", "bold"));
        y += LINE;
        for row in &case.rows {
            picture = row.draw(picture, &scale, y + LINE / 2.0);
            y += LINE;
        }
    }
    format!("{picture}\n")
}

/// A case.
struct Rows<'a> {
    name: &'a str,
    unit: &'a str,
    rows: Vec<Row<'a>>,
}

/// One of ours or theirs.
struct Row<'a> {
    name: &'a str,
    colour: &'static str,
    figures: String,
    /// How many times as good as the best peer: the median, and the ends of the range.
    ratios: Option<[f64; 3]>,
}

impl<'a> Rows<'a> {
    fn of(case: &'a Case) -> Self {
        let peers = case.peers.iter().filter_map(|(_, peer)| peer.median());
        // Where nobody could be measured beside ours, there is nothing but ours to compare it with.
        let best = match case.better {
            Better::More => peers.max_by(f64::total_cmp),
            Better::Less => peers.min_by(f64::total_cmp),
        };
        let best = best.or(case.ours.median());
        let row = |name, colour, samples: &Samples| {
            let (median, range) = (samples.median(), samples.spread());
            let ratios = median.zip(range).and_then(|(median, (low, high))| {
                let ratio = |value| case.better.ratio(value, best?);
                Some([ratio(median)?, ratio(low)?, ratio(high)?])
            });
            let figures = median.zip(range).map(|(median, (low, high))| {
                let [median, low, high] = [median, low, high].map(rounded);
                format!("{median} ({low}..{high}) {}", case.unit)
            });
            Row {
                name,
                colour,
                figures: figures.unwrap_or("none".to_owned()),
                ratios,
            }
        };
        let theirs = case
            .peers
            .iter()
            .map(|(name, peer)| row(name, THEIRS, peer));
        Rows {
            name: &case.name,
            unit: case.unit,
            rows: std::iter::once(row("ours", OURS, &case.ours))
                .chain(theirs)
                .collect(),
        }
    }

    fn lines(&self) -> usize {
        1 + self.rows.len()
    }
}

impl Row<'_> {
    fn draw(&self, picture: Document, scale: &Scale, y: f64) -> Document {
        let picture = picture
            .add(text(LEFT - MARGIN, y, self.name).set("text-anchor", "end"))
            .add(text(RIGHT + MARGIN, y, &self.figures));
        let Some(ratios) = self.ratios else {
            return picture;
        };
        let [median, low, high] = ratios.map(|ratio| scale.x(ratio));
        let one = scale.x(1.0);
        let bar = Rectangle::new()
            .set("x", one.min(median))
            .set("y", y - BAR / 2.0)
            .set("width", tenths((one - median).abs()))
            .set("height", BAR)
            .set("fill", self.colour);
        let dot = Circle::new()
            .set("cx", median)
            .set("cy", y)
            .set("r", 3)
            .set("fill", self.colour)
            .set("stroke", INK);
        picture
            .add(bar)
            .add(line([low, y], [high, y], INK))
            .add(dot)
    }
}

/// How many times as good, from left to right.
struct Scale {
    /// How many doublings there are to either side of 1.
    doublings: f64,
}

impl Scale {
    /// One that has room for all, within limits.
    fn for_all(rows: &[Rows<'_>]) -> Self {
        let ratios = rows
            .iter()
            .flat_map(|case| case.rows.iter().filter_map(|row| row.ratios).flatten());
        let furthest = ratios.map(|ratio| ratio.log2().abs()).fold(0.0, f64::max);
        let [least, most] = DOUBLINGS;
        Scale {
            doublings: furthest.ceil().clamp(least, most),
        }
    }

    fn x(&self, ratio: f64) -> f64 {
        let doublings = ratio.log2().clamp(-self.doublings, self.doublings);
        let middle = (LEFT + RIGHT) / 2.0;
        tenths(middle + doublings / self.doublings * (RIGHT - LEFT) / 2.0)
    }

    /// Powers of two and what is written beside them.
    fn ticks(&self) -> Vec<(f64, String)> {
        let most = self.doublings as i32;
        let label = |power: i32| match power {
            ..0 => format!("1/{}", 1 << -power),
            _ => format!("{}", 1 << power),
        };
        (-most..=most)
            .map(|power| (f64::from(power).exp2(), label(power)))
            .collect()
    }
}

/// More digits than anyone sees make a file long.
fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Text whose middle is at this height.
fn text(x: f64, y: f64, content: &str) -> Text {
    Text::new(content)
        .set("x", x)
        .set("y", y)
        // Half the height of a small letter and a bit; `dominant-baseline` is not known to all programs.
        .set("dy", "0.35em")
}

fn line(from: [f64; 2], to: [f64; 2], colour: &str) -> Line {
    Line::new()
        .set("x1", from[0])
        .set("y1", from[1])
        .set("x2", to[0])
        .set("y2", to[1])
        .set("stroke", colour)
}

#[cfg(test)]
mod tests {
    use super::*;
    use roxmltree::Node;

    fn samples(values: &[f64]) -> Samples {
        values.iter().copied().collect()
    }

    fn case(name: &str, better: Better, ours: &[f64], peers: &[(&str, f64)]) -> Case {
        let peers = peers.iter();
        Case {
            name: name.into(),
            unit: "Gb/s",
            better,
            ours: samples(ours),
            peers: peers.map(|(n, v)| ((*n).into(), samples(&[*v]))).collect(),
        }
    }

    fn parse(svg: &str) -> roxmltree::Document<'_> {
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        roxmltree::Document::parse(svg).unwrap()
    }

    fn texts(svg: &roxmltree::Document<'_>) -> Vec<String> {
        let texts = svg.descendants().filter(|node| node.has_tag_name("text"));
        texts
            .map(|n| {
                n.descendants()
                    .filter_map(|t| t.text())
                    .next()
                    .unwrap()
                    .trim()
                    .to_owned()
            })
            .collect()
    }

    fn medians(svg: &roxmltree::Document<'_>) -> Vec<f64> {
        let number = |node: Node<'_, '_>| node.attribute("cx").unwrap().parse().unwrap();
        let dots = svg.descendants().filter(|node| node.has_tag_name("circle"));
        dots.map(number).collect()
    }

    #[test]
    fn every_case_and_set_up_is_named_whatever_its_name() {
        let cases = [
            case(
                "a <b> & \"c\"",
                Better::More,
                &[2.0, 4.0],
                &[("qemu-tap", 1.0)],
            ),
            case("alone", Better::Less, &[2.0], &[]),
            case("nothing", Better::Less, &[], &[("passt", 1.0)]),
        ];
        let text = svg(&cases, &["rounds: 3 & <more>".into()]);
        let picture = parse(&text);
        let texts = texts(&picture);
        for wanted in [
            "rounds: 3 & <more>",
            "a <b> & \"c\" [Gb/s]",
            "alone [Gb/s]",
            "nothing [Gb/s]",
            "qemu-tap",
            "passt",
            "3.00 (2.00..4.00) Gb/s",
            "none",
        ] {
            assert!(
                texts.iter().any(|text| text == wanted),
                "{wanted}: {texts:?}"
            );
        }
        assert_eq!(texts.iter().filter(|text| *text == "ours").count(), 3);
    }

    #[test]
    fn right_is_better_whatever_the_unit_and_the_best_peer_is_in_the_middle() {
        let middle = (LEFT + RIGHT) / 2.0;
        for (better, ours) in [(Better::More, 4.0), (Better::Less, 1.0)] {
            let peers = [("good", 2.0), ("bad", if ours > 2.0 { 1.0 } else { 4.0 })];
            let text = svg(&[case("x", better, &[ours], &peers)], &[]);
            let [ours, good, bad] = medians(&parse(&text))[..] else {
                panic!("not three dots: {text}");
            };
            // One doubling is all that this scale has.
            assert_eq!((ours, good, bad), (RIGHT, middle, LEFT));
        }
    }

    #[test]
    fn what_is_nothing_is_at_the_edge() {
        let text = svg(
            &[
                case("none at all", Better::Less, &[0.0], &[("peer", 3.0)]),
                case("both", Better::Less, &[0.0], &[("peer", 0.0)]),
            ],
            &[],
        );
        let middle = (LEFT + RIGHT) / 2.0;
        assert_eq!(medians(&parse(&text)), [RIGHT, middle, middle, middle]);
    }

    #[test]
    fn the_scale_has_room_for_all_within_limits() {
        let far = [case("x", Better::More, &[1000.0], &[("peer", 1.0)])];
        let rows: Vec<_> = far.iter().map(Rows::of).collect();
        let scale = Scale::for_all(&rows);
        assert_eq!(scale.doublings, DOUBLINGS[1]);
        assert_eq!(scale.x(1000.0), RIGHT);
        let ticks = scale.ticks();
        assert_eq!(ticks.len(), 11);
        assert_eq!((ticks[0].1.as_str(), ticks[10].1.as_str()), ("1/32", "32"));
        assert_eq!(Scale::for_all(&[]).doublings, DOUBLINGS[0]);
    }
}

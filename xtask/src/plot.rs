//! Plots of what the benches print: grouped horizontal bars, as SVG.
//!
//! A plot has panels below each other, a panel groups, a group one bar for each series. All panels share the axis, so that
//! lengths can be compared across them. The order of drawing is that of the arguments, and the same arguments make the same bytes.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

const WIDTH: f64 = 760.0;
const MARGIN: f64 = 16.0;
const LINE: f64 = 16.0;
const BAR: f64 = 12.0;
const GROUP_GAP: f64 = 10.0;
/// The most that titles of groups take of the width.
const TITLES_MAX: f64 = 250.0;
/// Advance of a character, in parts of the font's size: somewhat more than a sans-serif font has in the mean.
const ADVANCE: f64 = 0.58;
/// Values that span more than this are drawn on a logarithmic axis.
const LINEAR_SPAN_MAX: f64 = 100.0;
/// Okabe and Ito's colours, which the colour-blind can tell apart too, without the yellow, which is faint on white.
const COLOURS: [&str; 7] = [
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#666666",
];

/// What is drawn.
pub(crate) struct Plot {
    pub(crate) title: String,
    /// The unit, and which direction is the better one.
    pub(crate) subtitle: String,
    pub(crate) axis: Axis,
    /// Names of the series, for the legend.
    pub(crate) series: Vec<String>,
    pub(crate) panels: Vec<Panel>,
}

/// Where bars begin.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Axis {
    /// At nothing; far to the left where the values need a logarithmic axis.
    Values,
    /// At 1, on a logarithmic axis: those of less go to the left.
    Ratios,
}

/// Groups of the same kind.
pub(crate) struct Panel {
    /// May be empty.
    pub(crate) title: String,
    pub(crate) groups: Vec<Group>,
}

/// Bars that are compared.
pub(crate) struct Group {
    pub(crate) title: String,
    /// One for each series, in their order.
    pub(crate) bars: Vec<Bar>,
}

/// One value.
pub(crate) struct Bar {
    /// More than 0; others have no length.
    pub(crate) value: f64,
    /// How it is told beside the bar.
    pub(crate) text: String,
}

impl Bar {
    /// How many times as good as the other something is, and its own figure.
    pub(crate) fn ratio(value: f64, figure: &str) -> Self {
        Self {
            value,
            text: format!("{} ({figure})", rounded(value)),
        }
    }

    pub(crate) fn seconds(value: f64) -> Self {
        Self {
            value,
            text: rounded(value),
        }
    }
}

/// With two digits behind the point, or as many more as leave one of a small value.
fn rounded(value: f64) -> String {
    let digits = match value > 0.0 {
        true => (-value.log10().floor()).clamp(2.0, 6.0) as usize,
        false => 2,
    };
    format!("{value:.digits$}")
}

/// Makes the directory of a plot that is to be written, before a bench takes its time.
///
/// # Errors
/// When it cannot be made, or the path is that of a directory.
pub(crate) fn prepare(path: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(!path.is_dir(), "{} is a directory", path.display());
    match path.parent() {
        Some(parent) => std::fs::create_dir_all(parent)
            .with_context(|| format!("making the directory {}", parent.display())),
        None => Ok(()),
    }
}

/// What figures are after so many rounds, for the subtitle.
pub(crate) fn medians_of(rounds: usize) -> String {
    match rounds {
        1 => "one round".to_owned(),
        _ => format!("medians of {rounds} rounds"),
    }
}

impl Plot {
    /// Draws to a file, which is replaced.
    ///
    /// # Errors
    /// When it cannot be written; part of it may be.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, self.draw()).with_context(|| format!("writing {}", path.display()))
    }

    fn draw(&self) -> String {
        let groups = || self.panels.iter().flat_map(|panel| &panel.groups);
        let bars = || groups().flat_map(|group| &group.bars);
        let widest = |texts: &mut dyn Iterator<Item = &String>, size| {
            texts.map(|text| width(text, size)).fold(0.0, f64::max)
        };
        let titles = widest(&mut groups().map(|group| &group.title), 12.0).min(TITLES_MAX);
        let texts = widest(&mut bars().map(|bar| &bar.text), 11.0);
        let left = MARGIN + titles + 8.0;
        let scale = Scale::new(
            self.axis,
            bars().map(|bar| bar.value),
            left,
            WIDTH - MARGIN - texts - 8.0,
        );
        let mut canvas = Canvas::default();
        canvas.head(&self.title, &self.subtitle, scale.is_logarithmic);
        canvas.legend(&self.series);
        for panel in &self.panels {
            canvas.panel(panel, &scale, titles);
        }
        canvas.end(&self.title)
    }
}

/// Places values from left to right.
struct Scale {
    is_logarithmic: bool,
    /// The values at the ends.
    low: f64,
    high: f64,
    /// Where the ends are.
    left: f64,
    right: f64,
    /// The value at which bars begin.
    origin: f64,
}

impl Scale {
    fn new(axis: Axis, values: impl Iterator<Item = f64>, left: f64, right: f64) -> Self {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|value| value.is_finite() && *value > 0.0) {
            least = least.min(value);
            most = most.max(value);
        }
        if most == 0.0 {
            (least, most) = (1.0, 1.0);
        }
        let is_logarithmic = axis == Axis::Ratios || most / least > LINEAR_SPAN_MAX;
        let (low, high, origin) = match axis {
            // Small differences shall not look like large ones.
            Axis::Ratios => (least.min(0.5), most.max(2.0), 1.0),
            Axis::Values if is_logarithmic => {
                // The shortest bar can be seen too.
                let low = 10.0_f64.powf((least / 1.5).log10().floor());
                (low, most, low)
            }
            Axis::Values => (0.0, most, 0.0),
        };
        Self {
            is_logarithmic,
            low,
            high,
            left,
            right,
            origin,
        }
    }

    /// Where a value is; what is too small or no number is at the left end.
    fn at(&self, value: f64) -> f64 {
        let value = value.max(self.low).min(self.high);
        let part = match self.is_logarithmic {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        self.left + part * (self.right - self.left)
    }

    /// Values that get a line: 1, 2 or 5 times a power of ten.
    fn ticks(&self) -> Vec<f64> {
        let decades = |first: f64, last: f64, steps: &[f64]| -> Vec<f64> {
            let first = first.log10().floor() as i32;
            let last = last.log10().ceil() as i32;
            (first..=last)
                .flat_map(|power| steps.iter().map(move |step| power_of_ten(power, *step)))
                .collect()
        };
        let mut ticks = if self.is_logarithmic {
            let steps: &[f64] = match self.high / self.low > 1000.0 {
                true => &[1.0],
                false => &[1.0, 2.0, 5.0],
            };
            decades(self.low, self.high, steps)
        } else {
            let steps = decades(self.high / 10.0, self.high, &[1.0, 2.0, 5.0]);
            let step = steps.into_iter().find(|step| self.high / step <= 6.0);
            let step = step.unwrap_or(self.high);
            (0..=6).map(|number| f64::from(number) * step).collect()
        };
        // Those that are computed are off by roundings.
        ticks.retain(|tick| *tick >= self.low * 0.999_999 && *tick <= self.high * 1.000_001);
        ticks
    }
}

/// The number of so many times that power of ten that is nearest to it.
fn power_of_ten(power: i32, times: f64) -> f64 {
    match power < 0 {
        true => times / 10.0_f64.powi(-power),
        false => times * 10.0_f64.powi(power),
    }
}

/// A tick's value without digits that only a rounding has made.
fn tick_text(tick: f64) -> String {
    let text = format!("{tick:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What a text takes, about.
fn width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * ADVANCE
}

/// As much of a text as there is room for.
fn fit(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_owned();
    }
    let count = (room / (size * ADVANCE)) as usize;
    let kept: String = text.chars().take(count.saturating_sub(1)).collect();
    format!("{kept}\u{2026}")
}

/// A text as an element or an attribute takes it. Control characters, which XML has no way to write, become U+FFFD.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Elements so far, and how far down they reach.
#[derive(Default)]
struct Canvas {
    body: String,
    down: f64,
}

impl Canvas {
    fn head(&mut self, title: &str, subtitle: &str, is_logarithmic: bool) {
        self.down = MARGIN + LINE;
        let room = WIDTH - 2.0 * MARGIN;
        self.text("title", MARGIN, self.down, &fit(title, 17.0, room));
        let mut subtitle = subtitle.to_owned();
        if is_logarithmic {
            subtitle += "; logarithmic axis";
        }
        let mut line = String::new();
        for word in subtitle.split(' ') {
            if !line.is_empty() && width(&line, 12.0) + width(word, 12.0) > room {
                self.down += LINE;
                self.text("note", MARGIN, self.down, &line);
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line += word;
        }
        self.down += LINE + 2.0;
        self.text("note", MARGIN, self.down, &line);
        self.down += 8.0;
    }

    fn legend(&mut self, series: &[String]) {
        let mut across = MARGIN;
        let mut down = self.down + LINE;
        for (number, name) in series.iter().enumerate() {
            let name = fit(name, 12.0, WIDTH / 2.0);
            let takes = BAR + 6.0 + width(&name, 12.0) + 18.0;
            if across > MARGIN && across + takes > WIDTH - MARGIN {
                across = MARGIN;
                down += LINE + 2.0;
            }
            self.rect("key", number, across, down - 10.0, BAR);
            self.text("name", across + BAR + 6.0, down, &name);
            across += takes;
        }
        self.down = down + 12.0;
    }

    fn panel(&mut self, panel: &Panel, scale: &Scale, titles: f64) {
        if !panel.title.is_empty() {
            self.down += LINE + 8.0;
            let title = fit(&panel.title, 13.0, WIDTH - 2.0 * MARGIN);
            self.text("panel", MARGIN, self.down, &title);
            self.down += 6.0;
        }
        let high = |group: &Group| group.bars.len() as f64 * (BAR + 1.0) + GROUP_GAP;
        let top = self.down + LINE;
        let bottom = top + panel.groups.iter().map(high).sum::<f64>() + GROUP_GAP / 2.0;
        for tick in scale.ticks() {
            let class = match tick == scale.origin {
                true => "origin",
                false => "tick",
            };
            self.line(class, scale.at(tick), top, bottom);
            self.text("value middle", scale.at(tick), top - 4.0, &tick_text(tick));
        }
        self.down = top + GROUP_GAP;
        for group in &panel.groups {
            let middle = self.down + (high(group) - GROUP_GAP) / 2.0 + 4.0;
            let title = fit(&group.title, 12.0, titles);
            self.text("name end", MARGIN + titles, middle, &title);
            for (number, bar) in group.bars.iter().enumerate() {
                let (origin, end) = (scale.at(scale.origin), scale.at(bar.value));
                let from = origin.min(end);
                self.rect("bar", number, from, self.down, (end - origin).abs());
                let beside = origin.max(end) + 5.0;
                self.text("value", beside, self.down + 10.0, &bar.text);
                self.down += BAR + 1.0;
            }
            self.down += GROUP_GAP;
        }
        self.down = bottom;
    }

    fn text(&mut self, class: &str, across: f64, down: f64, text: &str) {
        let text = escape(text);
        let _ = writeln!(
            self.body,
            r#"<text class="{class}" x="{across:.1}" y="{down:.1}">{text}</text>"#
        );
    }

    fn rect(&mut self, class: &str, number: usize, across: f64, down: f64, wide: f64) {
        let colour = COLOURS[number % COLOURS.len()];
        let _ = writeln!(
            self.body,
            r#"<rect class="{class}" x="{across:.1}" y="{down:.1}" width="{wide:.1}" height="{BAR:.1}" fill="{colour}"/>"#
        );
    }

    fn line(&mut self, class: &str, across: f64, top: f64, bottom: f64) {
        let _ = writeln!(
            self.body,
            r#"<line class="{class}" x1="{across:.1}" y1="{top:.1}" x2="{across:.1}" y2="{bottom:.1}"/>"#
        );
    }

    fn end(self, title: &str) -> String {
        let height = self.down + MARGIN;
        let style = "text { font-family: Helvetica, Arial, sans-serif; font-size: 12px; fill: #222222; } \
                     .title { font-size: 17px; font-weight: bold; } .panel { font-size: 13px; font-weight: bold; } \
                     .note { fill: #555555; } .value { font-size: 11px; } .middle { text-anchor: middle; } \
                     .end { text-anchor: end; } .tick { stroke: #dddddd; } .origin { stroke: #555555; }";
        let (title, body) = (escape(title), self.body);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {WIDTH:.0} {height:.0}\" role=\"img\">\n\
             <title>{title}</title>\n<style>{style}</style>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use quick_xml::escape::resolve_predefined_entity;
    use quick_xml::events::Event;

    use super::*;

    /// An element that was read back.
    struct Element {
        name: String,
        attributes: Vec<(String, String)>,
        text: String,
    }

    impl Element {
        fn attribute(&self, name: &str) -> &str {
            let found = self.attributes.iter().find(|(key, _)| key == name);
            found.map_or("", |(_, value)| value)
        }

        fn number(&self, name: &str) -> f64 {
            self.attribute(name).parse().expect("a number")
        }

        fn is(&self, name: &str, class: &str) -> bool {
            self.name == name && self.attribute("class").split(' ').any(|one| one == class)
        }
    }

    /// The elements of a document, which must be well formed.
    fn parse(document: &str) -> Vec<Element> {
        let mut reader = quick_xml::Reader::from_str(document);
        let (mut elements, mut open): (Vec<Element>, Vec<usize>) = (Vec::new(), Vec::new());
        loop {
            let event = reader.read_event().expect("well formed");
            match &event {
                Event::Start(start) | Event::Empty(start) => {
                    let name = start.name().as_ref().to_vec();
                    let attributes = start.attributes().map(|attribute| {
                        let attribute = attribute.expect("well formed");
                        let key = String::from_utf8(attribute.key.as_ref().to_vec());
                        let value = String::from_utf8(attribute.value.to_vec());
                        (key.expect("UTF-8"), value.expect("UTF-8"))
                    });
                    assert!(!open.is_empty() || elements.is_empty(), "two roots");
                    if matches!(event, Event::Start(_)) {
                        open.push(elements.len());
                    }
                    elements.push(Element {
                        name: String::from_utf8(name).expect("UTF-8"),
                        attributes: attributes.collect(),
                        text: String::new(),
                    });
                }
                Event::End(_) => drop(open.pop().expect("well formed")),
                Event::Text(text) => {
                    let text = text.decode().expect("UTF-8");
                    match open.last() {
                        Some(last) => elements[*last].text += &text,
                        None => assert_eq!(text.trim(), "", "text outside of the root"),
                    }
                }
                Event::GeneralRef(name) => {
                    let name = name.decode().expect("UTF-8");
                    let text = resolve_predefined_entity(&name).expect("an entity of XML's own");
                    elements[*open.last().expect("inside of the root")].text += text;
                }
                Event::Eof => break,
                other => panic!("unexpected: {other:?}"),
            }
        }
        assert!(open.is_empty(), "an element that does not end");
        elements
    }

    fn plot(axis: Axis, values: &[&[f64]]) -> Plot {
        let group = |(number, value): (usize, &f64)| Group {
            title: format!("group {number}"),
            bars: vec![
                Bar {
                    value: *value,
                    text: value.to_string(),
                },
                Bar {
                    value: *value / 2.0,
                    text: (value / 2.0).to_string(),
                },
            ],
        };
        Plot {
            title: "A plot".to_owned(),
            subtitle: "seconds, less is better".to_owned(),
            axis,
            series: vec!["one".to_owned(), "other".to_owned()],
            panels: values
                .iter()
                .map(|values| Panel {
                    title: "panel".to_owned(),
                    groups: values.iter().enumerate().map(group).collect(),
                })
                .collect(),
        }
    }

    /// Draws values, each with its half, and checks what holds of all plots: bars lie between the titles and the right end
    /// without touching each other, larger values reach further, values are told beside their bars, and ticks are where
    /// their values are. The ends of the bars.
    fn check(axis: Axis, values: &[&[f64]]) -> Vec<(f64, f64)> {
        let elements = parse(&plot(axis, values).draw());
        let height = elements[0].number("height");
        let bars: Vec<&Element> = elements.iter().filter(|it| it.is("rect", "bar")).collect();
        let values: Vec<f64> = values
            .concat()
            .iter()
            .flat_map(|it| [*it, it / 2.0])
            .collect();
        assert_eq!(bars.len(), values.len());
        let mut last = 0.0;
        let mut ends = Vec::new();
        for (bar, value) in bars.iter().zip(&values) {
            let (from, wide) = (bar.number("x"), bar.number("width"));
            let down = bar.number("y");
            assert!(down >= last, "{value} lies on the bar before it");
            last = down + bar.number("height");
            assert!(from > MARGIN && from + wide < WIDTH - MARGIN && last < height);
            let text = value.to_string();
            let beside = elements.iter().find(|it| {
                it.is("text", "value")
                    && it.text == text
                    && (it.number("y") - down - 10.0).abs() < 0.2
            });
            let beside = beside.expect("the value beside its bar").number("x");
            assert!(beside > from + wide && beside + width(&text, 11.0) <= WIDTH);
            ends.push((
                *value,
                if axis == Axis::Ratios && *value < 1.0 {
                    from
                } else {
                    from + wide
                },
            ));
        }
        let ticks = elements.iter().filter(|it| it.is("text", "middle"));
        let mut all = ends.clone();
        all.extend(ticks.map(|it| (it.text.parse().expect("a number"), it.number("x"))));
        assert!(all.len() >= ends.len() + 2, "ticks are missing");
        all.sort_by(|one, other| one.0.total_cmp(&other.0));
        for pair in all.windows(2) {
            let ((less, nearer), (more, further)) = (pair[0], pair[1]);
            match less == more {
                true => assert!((nearer - further).abs() < 0.3, "{less} is at two places"),
                false => assert!(nearer < further, "{less} is not left of {more}"),
            }
        }
        ends
    }

    fn end_of(ends: &[(f64, f64)], value: f64) -> f64 {
        ends.iter().find(|end| end.0 == value).expect("drawn").1
    }

    #[test]
    fn larger_values_reach_further() {
        check(Axis::Values, &[&[3.5, 1.2, 7.0, 4.0]]);
        check(Axis::Values, &[&[0.04, 6.5, 33.0], &[12.0, 0.3]]);
        check(Axis::Values, &[&[0.000_4, 900.0]]);
        check(Axis::Values, &[&[1.0]]);
        check(Axis::Ratios, &[&[0.04, 0.9, 1.0, 1.6, 124.0]]);
        check(Axis::Ratios, &[&[1.3]]);
        check(Axis::Ratios, &[&[0.001, 5000.0]]);
    }

    #[test]
    fn lengths_say_what_the_values_are() {
        let ends = check(Axis::Values, &[&[8.0, 6.0]]);
        let steps = [(8.0, 6.0), (6.0, 4.0)];
        let [one, other] = steps.map(|(more, less)| end_of(&ends, more) - end_of(&ends, less));
        assert!(
            (one - other).abs() < 0.3,
            "{one} and {other} for the same difference"
        );
        let bar = end_of(&ends, 8.0) - end_of(&ends, 4.0);
        assert!(
            (bar - 2.0 * one).abs() < 0.3,
            "half of it is not half as long"
        );

        // 0.5 and 2 are as far from 1.
        let ends = check(Axis::Ratios, &[&[1.0, 2.0, 16.0]]);
        let steps = [(2.0, 1.0), (1.0, 0.5), (16.0, 8.0)];
        let [one, two, three] = steps.map(|(more, less)| end_of(&ends, more) - end_of(&ends, less));
        assert!(
            (one - two).abs() < 0.3 && (one - three).abs() < 0.3,
            "{one}, {two}, {three}"
        );
    }

    #[test]
    fn small_values_keep_a_digit() {
        let texts = [0.003, 0.051, 0.4, 1.0, 81.766, 0.0].map(|value| Bar::seconds(value).text);
        assert_eq!(texts, ["0.003", "0.05", "0.40", "1.00", "81.77", "0.00"]);
        assert_eq!(Bar::ratio(1.5, "3 MB/s").text, "1.50 (3 MB/s)");
    }

    #[test]
    fn values_without_a_place_have_no_length() {
        let document = plot(Axis::Values, &[&[f64::NAN, 0.0, 2.0]]).draw();
        let elements = parse(&document);
        let bars = elements.iter().filter(|it| it.is("rect", "bar"));
        let widths: Vec<f64> = bars.map(|bar| bar.number("width")).collect();
        assert_eq!(widths[..4], [0.0; 4]);
        assert!(widths[4] > widths[5] && widths[5] > 0.0);
        let none = plot(Axis::Ratios, &[&[0.0, f64::INFINITY]]).draw();
        assert!(!parse(&none).is_empty());
    }

    #[test]
    fn names_are_escaped() {
        let name = |which: &str| format!("{which} <b> & \"c\" 'd' ]]> \u{fc}");
        let mut plot = plot(Axis::Ratios, &[&[1.5]]);
        plot.title = name("title");
        plot.subtitle = name("subtitle");
        plot.series[1] = name("series");
        plot.panels[0].title = name("panel");
        plot.panels[0].groups[0].title = name("group");
        plot.panels[0].groups[0].bars[0].text = name("bar");
        plot.panels[0].groups[0].bars[1].text = "\u{1}".to_owned();
        let elements = parse(&plot.draw());
        let has = |text: &str| elements.iter().filter(|it| it.text == text).count();
        assert_eq!(has(&name("title")), 2);
        assert_eq!(has(&(name("subtitle") + "; logarithmic axis")), 1);
        for which in ["series", "panel", "group", "bar"] {
            assert_eq!(has(&name(which)), 1, "{which}");
        }
        assert_eq!(has("\u{fffd}"), 1);
    }

    #[test]
    fn long_names_stay_inside() {
        let mut plot = plot(Axis::Values, &[&[1.0]]);
        let long = "so many words ".repeat(20);
        plot.title.clone_from(&long);
        plot.subtitle.clone_from(&long);
        plot.series = (0..12).map(|number| format!("{number} {long}")).collect();
        plot.panels[0].title.clone_from(&long);
        plot.panels[0].groups[0].title.clone_from(&long);
        for text in parse(&plot.draw()).iter().filter(|it| it.name == "text") {
            let size = match text.is("text", "title") {
                true => 17.0,
                false => 12.0,
            };
            let takes = width(&text.text, size);
            let (from, to) = match text.is("text", "end") {
                true => (text.number("x") - takes, text.number("x")),
                false => (text.number("x"), text.number("x") + takes),
            };
            let inside = from > 0.0 && to < WIDTH;
            assert!(inside, "{from} to {to}: {}", text.text);
        }
    }
}

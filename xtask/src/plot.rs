//! Plots of what the benches print: grouped horizontal bars, as SVG.
//!
//! A plot has panels below each other, a panel groups, a group one bar for each series. All panels share the axis, so that
//! lengths can be compared across them. The order of drawing is that of the arguments, and the same arguments make the same bytes.

use std::ops::Range;
use std::path::Path;

use anyhow::Context as _;
use plotters::coord::Shift;
use plotters::coord::combinators::{BindKeyPoints as _, LogCoord, WithKeyPoints};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::data::float::pretty_print_float;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

// In pixels.
const WIDTH: u32 = 760;
const MARGIN: u32 = 16;
const HEAD: u32 = 48;
const LEGEND_ROW: u32 = 18;
const TICKS: u32 = 26;
const PANEL_TITLE: i32 = 28;
const BAR: i32 = 13;
const GROUP_GAP: i32 = 10;
/// The most that names of series, titles of groups and texts of bars take of the width each.
const BESIDE_MAX: u32 = 250;
/// Values that span more than this are drawn on a logarithmic axis.
const LINEAR_SPAN_MAX: f64 = 100.0;
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const FAINT: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
/// Okabe and Ito's colours, which the colour-blind can tell apart too, without the yellow, which is faint on white.
const COLOURS: [u32; 7] = [
    0x0072b2, 0xe69f00, 0x009e73, 0xd55e00, 0xcc79a7, 0x56b4e9, 0x666666,
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

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

    fn length(&self) -> Option<f64> {
        (self.value.is_finite() && self.value > 0.0).then_some(self.value)
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
        std::fs::write(path, self.draw()?).with_context(|| format!("writing {}", path.display()))
    }

    fn draw(&self) -> anyhow::Result<String> {
        let groups = self.panels.iter().flat_map(|panel| &panel.groups);
        let bars = groups.flat_map(|group| &group.bars);
        let values: Vec<f64> = bars.filter_map(Bar::length).collect();
        let least = values.iter().copied().reduce(f64::min).unwrap_or(1.0);
        let most = values.iter().copied().reduce(f64::max).unwrap_or(1.0);
        let mut document = String::new();
        match self.axis {
            Axis::Values if most / least <= LINEAR_SPAN_MAX => {
                self.draw_on(0.0..most, 0.0, "", &mut document)?;
            }
            of => {
                let (range, origin) = match of {
                    // Small differences shall not look like large ones.
                    Axis::Ratios => (least.min(0.5)..most.max(2.0), 1.0),
                    Axis::Values => {
                        // The shortest bar can be seen too.
                        let low = 10.0_f64.powi((least / 1.5).log10().floor() as i32);
                        (low..most, low)
                    }
                };
                let axis = logarithmic(range);
                self.draw_on(axis, origin, "logarithmic axis", &mut document)?;
            }
        }
        Ok(document)
    }

    /// Draws bars that begin at `origin` of an axis, which the note is about.
    fn draw_on<X>(&self, axis: X, origin: f64, note: &str, to: &mut String) -> anyhow::Result<()>
    where
        X: AsRangedCoord<Value = f64>,
        X::CoordDescType: ValueFormatter<f64>,
    {
        let group_height = self.series.len() as i32 * BAR + GROUP_GAP;
        let (mut titles, mut groups, mut down) = (Vec::new(), Vec::new(), 0);
        for panel in &self.panels {
            if !panel.title.is_empty() {
                titles.push((down, &panel.title));
                down += PANEL_TITLE;
            }
            for group in &panel.groups {
                groups.push((down + group_height / 2, group));
                down += group_height;
            }
        }
        let (text, bold) = (style(15, FontStyle::Normal), style(16, FontStyle::Bold));
        let widest =
            |widths: &mut dyn Iterator<Item = u32>| widths.max().unwrap_or(0).min(BESIDE_MAX);
        let name = widest(&mut self.series.iter().map(|name| width(name, &text)));
        let columns = ((WIDTH - 2 * MARGIN) / (name + 36)) as usize;
        let rows = self.series.len().div_ceil(columns);
        let head_height = HEAD + rows as u32 * LEGEND_ROW;
        let height = 2 * MARGIN + head_height + TICKS + down as u32;
        let root = SVGBackend::with_string(to, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let inside = root.margin(MARGIN, MARGIN, MARGIN, MARGIN);
        let (head, body) = inside.split_vertically(head_height);
        self.draw_head(&head, (rows, columns), note)?;

        let left = widest(&mut groups.iter().map(|(_, group)| width(&group.title, &text)));
        let bars = groups.iter().flat_map(|(_, group)| &group.bars);
        let right = widest(&mut bars.map(|bar| width(&bar.text, &text)));
        let mut chart = ChartBuilder::on(&body)
            .margin_left(left + 8)
            .margin_right(right + 8)
            .set_label_area_size(LabelAreaPosition::Top, TICKS)
            .build_cartesian_2d(axis, down..0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .axis_style(TRANSPARENT)
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .set_all_tick_mark_size(3)
            .label_style(text.clone())
            .x_label_formatter(&|tick| pretty_print_float(*tick, false))
            .draw()?;

        let plotting = chart.plotting_area();
        let titled = text.pos(Pos::new(HPos::Right, VPos::Center));
        let told = text.pos(Pos::new(HPos::Left, VPos::Center));
        for (middle, group) in groups {
            let at = (left as i32, TICKS as i32 + middle);
            body.draw_text(&fit(&group.title, &text, left), &titled, at)?;
            let mut top = middle - group.bars.len() as i32 * BAR / 2;
            for (number, bar) in group.bars.iter().enumerate() {
                let value = bar.length().unwrap_or(origin);
                let corners = [(origin, top), (value, top + BAR - 1)];
                plotting.draw(&Rectangle::new(corners, colour(number)))?;
                let end = EmptyElement::at((value.max(origin), top + BAR / 2));
                let figure = fit(&bar.text, &text, BESIDE_MAX);
                plotting.draw(&(end + Text::new(figure, (5, 0), &told)))?;
                top += BAR;
            }
        }
        plotting.draw(&PathElement::new([(origin, 0), (origin, down)], INK))?;
        for (down, title) in titles {
            let (top, room) = (TICKS as i32 + down, body.dim_in_pixel().0);
            let behind = [(0, top), (room as i32, top + PANEL_TITLE)];
            body.draw(&Rectangle::new(behind, WHITE.filled()))?;
            body.draw_text(&fit(title, &bold, room), &bold, (0, top + 12))?;
        }
        Ok(root.present()?)
    }

    fn draw_head(&self, head: &Area<'_>, cells: (usize, usize), note: &str) -> anyhow::Result<()> {
        let (text, title) = (style(15, FontStyle::Normal), style(21, FontStyle::Bold));
        let (room, note_room) = (head.dim_in_pixel().0, width(note, &text) + 8);
        let at_right = text.pos(Pos::new(HPos::Right, VPos::Top));
        head.draw_text(&fit(&self.title, &title, room - note_room), &title, (0, 0))?;
        head.draw_text(note, &at_right, (room as i32, 4))?;
        head.draw_text(&fit(&self.subtitle, &text, room), &text, (0, 24))?;
        let (_, legend) = head.split_vertically(HEAD);
        let cells = legend.split_evenly(cells);
        for (number, (cell, name)) in cells.iter().zip(&self.series).enumerate() {
            let name = fit(name, &text, cell.dim_in_pixel().0 - 24);
            cell.draw(&Rectangle::new([(0, 0), (12, 12)], colour(number)))?;
            cell.draw_text(&name, &text, (18, 1))?;
        }
        Ok(())
    }
}

/// An axis with ticks at powers of ten, and at 2 and 5 times them where there are few.
fn logarithmic(range: Range<f64>) -> WithKeyPoints<LogCoord<f64>> {
    let steps: &[f64] = match range.end / range.start > 1000.0 {
        true => &[1.0],
        false => &[1.0, 2.0, 5.0],
    };
    let powers = (-9..=9).map(|power| 10.0_f64.powi(power));
    let mut ticks: Vec<f64> = powers
        .flat_map(|power| steps.iter().map(move |step| step * power))
        .collect();
    ticks.retain(|tick| (range.start..=range.end).contains(tick));
    range.log_scale().with_key_points(ticks)
}

/// A style with a font of so many pixels, of which the library writes four fifths.
fn style(size: u32, weight: FontStyle) -> TextStyle<'static> {
    let font = ("Helvetica, Arial, sans-serif", size).into_font();
    font.style(weight).color(&INK)
}

fn colour(number: usize) -> ShapeStyle {
    let [_, red, green, blue] = COLOURS[number % COLOURS.len()].to_be_bytes();
    RGBColor(red, green, blue).filled()
}

/// What a text takes, about.
fn width(text: &str, style: &TextStyle<'_>) -> u32 {
    style.font.box_size(text).map_or(0, |(width, _)| width)
}

/// As much of a text as there is room for. Control characters, which XML has no way to write, become U+FFFD.
fn fit(text: &str, style: &TextStyle<'_>, room: u32) -> String {
    let mut text = text.replace(char::is_control, "\u{fffd}");
    if width(&text, style) > room {
        while width(&text, style) + width("\u{2026}", style) > room && text.pop().is_some() {}
        text.push('\u{2026}');
    }
    text
}

#[cfg(test)]
mod tests {
    use roxmltree::{Document, Node};

    use super::*;

    fn number(node: Node<'_, '_>, name: &str) -> f64 {
        let attribute = node.attribute(name).expect("written");
        attribute.parse().expect("a number")
    }

    fn elements<'a, 'b>(
        document: &'a Document<'b>,
        name: &'a str,
    ) -> impl Iterator<Item = Node<'a, 'b>> {
        let nodes = document.descendants();
        nodes.filter(move |node| node.has_tag_name(name))
    }

    fn told<'a>(text: Node<'a, '_>) -> &'a str {
        text.text().expect("not empty").trim()
    }

    /// The bars behind what is white and the legend.
    fn bars<'a, 'b>(document: &'a Document<'b>, series: usize) -> Vec<Node<'a, 'b>> {
        let coloured = |node: &Node<'_, '_>| node.attribute("fill") != Some("#FFFFFF");
        let rects = elements(document, "rect").filter(coloured);
        rects.skip(series).collect()
    }

    fn is_tick(text: Node<'_, '_>) -> bool {
        text.attribute("text-anchor") == Some("middle")
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
        let drawn = plot(axis, values).draw().expect("drawn");
        let document = Document::parse(&drawn).expect("well formed");
        let height = number(document.root_element(), "height");
        let bars = bars(&document, 2);
        let values: Vec<f64> = values
            .concat()
            .iter()
            .flat_map(|it| [*it, it / 2.0])
            .collect();
        assert_eq!(bars.len(), values.len());
        let mut last = 0.0;
        let mut ends = Vec::new();
        for (bar, value) in bars.iter().zip(&values) {
            let (from, wide) = (number(*bar, "x"), number(*bar, "width"));
            let down = number(*bar, "y");
            assert!(down > last, "{value} lies on the bar before it");
            last = down + number(*bar, "height");
            let right = f64::from(WIDTH - MARGIN);
            assert!(from > f64::from(MARGIN) && from + wide < right && last < height);
            let text = value.to_string();
            let beside = elements(&document, "text").find(|it| {
                told(*it) == text && (down..last).contains(&number(*it, "y")) && !is_tick(*it)
            });
            let beside = number(beside.expect("the value beside its bar"), "x");
            let takes = f64::from(width(&text, &style(15, FontStyle::Normal)));
            assert!(beside > from + wide && beside + takes <= f64::from(WIDTH));
            ends.push((
                *value,
                if axis == Axis::Ratios && *value < 1.0 {
                    from
                } else {
                    from + wide
                },
            ));
        }
        let ticks = elements(&document, "text").filter(|it| is_tick(*it));
        let mut all = ends.clone();
        all.extend(ticks.map(|it| (told(it).parse().expect("a number"), number(it, "x"))));
        assert!(all.len() >= ends.len() + 2, "ticks are missing");
        all.sort_by(|one, other| one.0.total_cmp(&other.0));
        for pair in all.windows(2) {
            let ((less, nearer), (more, further)) = (pair[0], pair[1]);
            match less == more {
                true => assert!((nearer - further).abs() < 1.5, "{less} is at two places"),
                false => assert!(nearer < further, "{less} is not left of {more}"),
            }
        }
        ends
    }

    fn widths(axis: Axis, values: &[f64]) -> Vec<f64> {
        let drawn = plot(axis, &[values]).draw().expect("drawn");
        let document = Document::parse(&drawn).expect("well formed");
        let bars = bars(&document, 2).into_iter();
        bars.map(|bar| number(bar, "width")).collect()
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
            (one - other).abs() < 2.5,
            "{one} and {other} for the same difference"
        );
        let bar = end_of(&ends, 8.0) - end_of(&ends, 4.0);
        assert!(
            (bar - 2.0 * one).abs() < 2.5,
            "half of it is not half as long"
        );
        let widths = widths(Axis::Values, &[8.0]);
        assert!(
            (widths[0] - 2.0 * widths[1]).abs() < 2.5,
            "bars do not begin at nothing"
        );

        // 0.5 and 2 are as far from 1.
        let ends = check(Axis::Ratios, &[&[1.0, 2.0, 16.0]]);
        let steps = [(2.0, 1.0), (1.0, 0.5), (16.0, 8.0)];
        let [one, two, three] = steps.map(|(more, less)| end_of(&ends, more) - end_of(&ends, less));
        assert!(
            (one - two).abs() < 2.5 && (one - three).abs() < 2.5,
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
        for axis in [Axis::Values, Axis::Ratios] {
            let widths = widths(axis, &[f64::NAN, 0.0, f64::INFINITY, 4.0]);
            assert_eq!(widths[..6], [0.0; 6]);
            assert!(widths[6] > widths[7] && widths[7] > 0.0);
        }
        let none = plot(Axis::Ratios, &[&[0.0]]).draw().expect("drawn");
        assert!(Document::parse(&none).is_ok());
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
        let drawn = plot.draw().expect("drawn");
        let document = Document::parse(&drawn).expect("well formed");
        let has = |text: &str| {
            let texts = elements(&document, "text");
            texts.filter(|it| told(*it) == text).count()
        };
        for which in ["title", "subtitle", "series", "panel", "group", "bar"] {
            assert_eq!(has(&name(which)), 1, "{which}");
        }
        assert_eq!(has("logarithmic axis"), 1);
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
        let drawn = plot.draw().expect("drawn");
        let document = Document::parse(&drawn).expect("well formed");
        for text in elements(&document, "text") {
            let takes = told(text).chars().count() as f64 * number(text, "font-size") * 0.56;
            let x = number(text, "x");
            let (from, to) = match text.attribute("text-anchor") {
                Some("end") => (x - takes, x),
                _ => (x, x + takes),
            };
            let inside = from > 0.0 && to < f64::from(WIDTH);
            assert!(inside, "{from} to {to}: {}", told(text));
        }
    }
}

//! A bar plot of the figures, by hand: SVG is text.

use std::fmt::Write as _;

use crate::measure::{Figure, Figures};
use crate::report::Report;

/// Picks what a panel shows.
type Pick = fn(&Figures) -> &Figure;
const PANELS: [(&str, Pick); 3] = [
    ("Freeze, ms", |f| &f.freeze_ms),
    ("Checkpoint command, ms", |f| &f.checkpoint_ms),
    ("Restart to first heartbeat, ms", |f| &f.restart_ms),
];
const COLORS: [&str; 3] = ["#2166ac", "#d6604d", "#4d9221"];

/// Pixels.
const LABEL: f64 = 330.0;
const PLOT: f64 = 480.0;
const RIGHT: f64 = 110.0;
const ROW: f64 = 20.0;
const HEAD: f64 = 46.0;
const GAP: f64 = 26.0;

/// The plot: for each figure a panel with a bar for each case, the range as a line. The axis is logarithmic.
pub fn plot(report: &Report) -> String {
    let mut body = String::new();
    let mut top = 40.0;
    for (title, figure) in PANELS {
        top = panel(report, title, figure, top, &mut body) + GAP;
    }
    let width = LABEL + PLOT + RIGHT;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{top}\" viewBox=\"0 0 {width} {top}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    label(
        &mut text,
        10.0,
        22.0,
        "start",
        &format!("{} (logarithmic axes)", report.machine.line()),
    );
    text + &body + "</svg>\n"
}

fn panel(report: &Report, title: &str, figure: Pick, top: f64, body: &mut String) -> f64 {
    let bars: Vec<(String, &Figure, &str)> = report
        .results
        .iter()
        .filter_map(|outcome| {
            let found = figure(outcome.figures.as_ref()?);
            let place = &report.places[outcome.place].file_system.kind;
            let tool = report.tools.iter().position(|tool| tool.name == outcome.tool);
            let color = COLORS[tool.unwrap_or_default() % COLORS.len()];
            let name = format!("{} · {place} · {}", outcome.title, outcome.tool);
            (found.median > 0.0).then_some((name, found, color))
        })
        .collect();
    let least = bars
        .iter()
        .map(|bar| bar.1.min)
        .filter(|v| *v > 0.0)
        .fold(f64::INFINITY, f64::min);
    let most = bars.iter().map(|bar| bar.1.max).fold(0.0, f64::max);
    let _ = writeln!(
        body,
        "<text x=\"10\" y=\"{}\" font-weight=\"bold\" font-size=\"14\">{title}</text>",
        top + 18.0
    );
    if bars.is_empty() {
        return top + HEAD;
    }
    // Whole decades, at least one.
    let (low, high) = (least.log10().floor(), most.log10().ceil());
    let high = high.max(low + 1.0);
    let x = |value: f64| LABEL + (value.log10().clamp(low, high) - low) / (high - low) * PLOT;
    let bottom = top + HEAD + ROW * bars.len() as f64;
    for decade in low as i32..=high as i32 {
        let value = 10f64.powi(decade);
        let at = x(value);
        let start = top + HEAD - 8.0;
        let _ = writeln!(body, "<path d=\"M{at:.1} {start:.1}V{bottom:.1}\" stroke=\"#ccc\"/>");
        label(body, at, start - 4.0, "middle", &value.to_string());
    }
    for (index, (name, figure, color)) in bars.iter().enumerate() {
        let y = top + HEAD + ROW * index as f64;
        let (end, middle) = (x(figure.median), y + ROW / 2.0 - 2.0);
        let (height, width) = (ROW - 6.0, (end - LABEL).max(1.0));
        let _ = writeln!(
            body,
            "<rect x=\"{LABEL}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{color}\"/>\n\
             <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"black\"/>",
            x(figure.min.max(least)),
            x(figure.max)
        );
        label(body, LABEL - 8.0, y + 12.0, "end", name);
        label(
            body,
            x(figure.max) + 6.0,
            y + 12.0,
            "start",
            &format!("{:.1}", figure.median),
        );
    }
    bottom
}

fn label(text: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        text,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
    );
}

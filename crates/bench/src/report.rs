//! What was measured, as a table for people, as Markdown and as JSON.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use crate::machine::{FileSystem, Machine};
use crate::measure::{Figure, Figures};

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// With what.
    pub tools: Vec<ToolVersion>,
    /// What the user said of it.
    pub label: Option<String>,
    /// Timed rounds of each case.
    pub runs: usize,
    /// The directories.
    pub places: Vec<Place>,
    /// What came out.
    pub results: Vec<Outcome>,
    /// What was left out or missing, and why.
    pub missing: Vec<String>,
}

/// A tool.
#[derive(Debug, Clone, Serialize)]
pub struct ToolVersion {
    /// Its name.
    pub name: String,
    /// What it says it is.
    pub version: String,
}

/// A directory images were written to.
#[derive(Debug, Clone, Serialize)]
pub struct Place {
    /// As given.
    pub directory: PathBuf,
    /// What it is on.
    pub file_system: FileSystem,
}

/// One case with one tool in one place.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Its short name.
    pub case: String,
    /// What it is called in tables.
    pub title: String,
    /// Index of the place.
    pub place: usize,
    /// Which tool.
    pub tool: String,
    /// What was measured …
    pub figures: Option<Figures>,
    /// … or why not.
    pub error: Option<String>,
}

/// Columns after the first: heading, what it is, and whether it is shown with its range.
type Cell = fn(&Figures) -> String;
const COLUMNS: [(&str, Cell); 11] = [
    ("freeze ms", |f| range(&f.freeze_ms)),
    ("undisturbed ms", |f| range(&f.undisturbed_ms)),
    ("checkpoint ms", |f| range(&f.checkpoint_ms)),
    ("+ sync ms", |f| number(f.durable_ms.median)),
    ("÷ write", |f| ratio(f.durable_ms.median, f.write_ms.median)),
    ("stopped ms", |f| range(&f.stopped_ms)),
    ("restart ms", |f| range(&f.restart_ms)),
    ("÷ read", |f| ratio(f.restart_ms.median, f.read_ms.median)),
    ("image MiB", |f| number(mib(f.image_bytes.median))),
    ("tool MiB", |f| number(mib(f.usage.peak_bytes as f64))),
    ("tool CPU ms", |f| number(f.usage.cpu_ms)),
];

fn mib(bytes: f64) -> f64 {
    bytes / (1 << 20) as f64
}

/// With three digits that say something.
fn number(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn range(figure: &Figure) -> String {
    format!(
        "{} ({}–{})",
        number(figure.median),
        number(figure.min),
        number(figure.max)
    )
}

fn ratio(value: f64, limit: f64) -> String {
    if limit > 0.0 {
        format!("{:.2}", value / limit)
    } else {
        "–".into()
    }
}

impl Report {
    /// Headings and rows of one place.
    fn rows(&self, place: usize) -> Vec<Vec<String>> {
        let mut heading = vec!["case".to_owned(), "tool".to_owned()];
        heading.extend(COLUMNS.iter().map(|(name, _)| (*name).to_owned()));
        let mut rows = vec![heading];
        for outcome in self.results.iter().filter(|outcome| outcome.place == place) {
            let mut row = vec![outcome.title.clone(), outcome.tool.clone()];
            if let Some(figures) = &outcome.figures {
                row.extend(COLUMNS.iter().map(|(_, cell)| cell(figures)));
            } else {
                row.push("failed".into());
                row.resize(COLUMNS.len() + 2, String::new());
            }
            rows.push(row);
        }
        rows
    }

    /// For each case that both tools have managed: how many times as much the other takes.
    fn ratios(&self, place: usize) -> Vec<Vec<String>> {
        let heading = [
            "case",
            "peer ÷ cpr:",
            "freeze",
            "checkpoint",
            "+ sync",
            "restart",
            "image",
            "memory",
            "CPU",
        ];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        for own in self.results.iter().filter(|o| o.place == place && o.tool == "cpr") {
            let same = |o: &&Outcome| o.place == place && o.case == own.case && o.tool != "cpr";
            for peer in self.results.iter().filter(same) {
                let (Some(a), Some(b)) = (&peer.figures, &own.figures) else {
                    continue;
                };
                rows.push(vec![
                    own.title.clone(),
                    peer.tool.clone(),
                    ratio(a.freeze_ms.median, b.freeze_ms.median),
                    ratio(a.checkpoint_ms.median, b.checkpoint_ms.median),
                    ratio(a.durable_ms.median, b.durable_ms.median),
                    ratio(a.restart_ms.median, b.restart_ms.median),
                    ratio(a.image_bytes.median, b.image_bytes.median),
                    ratio(a.usage.peak_bytes as f64, b.usage.peak_bytes as f64),
                    ratio(a.usage.cpu_ms, b.usage.cpu_ms),
                ]);
            }
        }
        rows
    }

    /// What writers reached, where there are any.
    fn writers(&self, place: usize) -> Vec<Vec<String>> {
        let heading = ["case", "tool", "written MB/s", "while a checkpoint is made, MB/s"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        for outcome in self.results.iter().filter(|o| o.place == place) {
            if let Some(figures) = outcome.figures.as_ref().filter(|f| f.written_mb_s.median > 0.0) {
                rows.push(vec![
                    outcome.title.clone(),
                    outcome.tool.clone(),
                    range(&figures.written_mb_s),
                    range(&figures.written_meanwhile_mb_s),
                ]);
            }
        }
        rows
    }

    /// All tables, each row made to text by `table`.
    fn text(&self, table: fn(&[Vec<String>]) -> String, heading: &str) -> String {
        let mut text = String::new();
        for (index, place) in self.places.iter().enumerate() {
            let system = &place.file_system;
            let _ = writeln!(text, "{heading}{} ({})\n", system.kind, system.source);
            text += &table(&self.rows(index));
            for more in [self.writers(index), self.ratios(index)] {
                if more.len() > 1 {
                    text += "\n";
                    text += &table(&more);
                }
            }
            text += "\n";
        }
        text
    }

    fn about(&self) -> Vec<String> {
        let mut tools: Vec<String> = self.tools.iter().map(|tool| tool.version.clone()).collect();
        // What the user says is of our own version, the first.
        if let (Some(own), Some(label)) = (tools.first_mut(), &self.label) {
            *own += &format!(" ({label})");
        }
        let mut lines = vec![
            format!("Machine: {}.", self.machine.line()),
            format!(
                "Measured: {}; median (smallest–largest) of {} runs.",
                tools.join(", "),
                self.runs
            ),
        ];
        lines.extend(self.missing.iter().map(|text| format!("NOT MEASURED: {text}")));
        let failed = |o: &Outcome| {
            o.error
                .as_ref()
                .map(|e| format!("FAILED: {} with {}: {e}", o.title, o.tool))
        };
        lines.extend(self.results.iter().filter_map(failed));
        lines
    }

    /// For a terminal.
    pub fn plain(&self) -> String {
        format!("{}\n\n{}", self.about().join("\n"), self.text(plain_table, ""))
    }

    /// For a document.
    pub fn markdown(&self) -> String {
        let about: Vec<String> = self.about().iter().map(|line| format!("- {line}")).collect();
        format!("{}\n\n{}", about.join("\n"), self.text(markdown_table, "### On "))
    }

    /// For programs.
    ///
    /// # Errors
    /// None that can happen with these types.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }
}

fn plain_table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            // Names to the left, figures to the right.
            let cell = if column < 2 {
                format!("{cell}{padding}")
            } else {
                format!("{padding}{cell}")
            };
            let _ = write!(line, "{cell}  ");
        }
        text += line.trim_end();
        text += "\n";
    }
    text
}

fn markdown_table(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let _ = writeln!(text, "| {} |", row.join(" | "));
        if index == 0 {
            let marks: Vec<&str> = (0..row.len())
                .map(|column| if column < 2 { "---" } else { "---:" })
                .collect();
            let _ = writeln!(text, "|{}|", marks.join("|"));
        }
    }
    text
}

/// Where generated text goes in a document.
const BEGIN: &str = "<!-- cpr-bench: what follows is generated -->";
const END: &str = "<!-- cpr-bench: end -->";

/// The document with `generated` between its marks; with marks at its end where it has none.
pub fn insert(document: &str, generated: &str) -> String {
    let block = format!("{BEGIN}\n\n{}\n\n{END}", generated.trim());
    let found = document.find(BEGIN).and_then(|start| {
        let end = document[start..].find(END)? + start + END.len();
        Some((start, end))
    });
    match found {
        Some((start, end)) => format!("{}{block}{}", &document[..start], &document[end..]),
        None if document.is_empty() => block + "\n",
        None => format!("{}\n\n{block}\n", document.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_text_is_replaced_and_the_rest_stays() {
        let first = insert("# Title\n\nText.\n", "old");
        assert!(first.starts_with("# Title\n\nText.\n\n"));
        let with_tail = first.clone() + "tail\n";
        let second = insert(&with_tail, "new");
        assert_eq!(second, with_tail.replace("old", "new"));
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(number(0.1234), "0.12");
        assert_eq!(number(12.34), "12.3");
        assert_eq!(number(1234.5), "1234");
        assert_eq!(ratio(1.0, 0.0), "–");
    }
}

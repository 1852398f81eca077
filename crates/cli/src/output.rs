//! What the user sees: results on standard output as text or JSON, everything else on standard error.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cpr_types::{Context, Error, ErrorKind, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::Global;

/// Operations that take no longer than this show no progress bar.
const BAR_AFTER: Duration = Duration::from_millis(200);

/// Where output goes and how much of it.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
    quiet: bool,
    verbose: bool,
    /// Standard output carries an image.
    stdout_taken: bool,
}

impl Output {
    pub fn new(global: &Global) -> Self {
        Output {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            stdout_taken: false,
        }
    }

    /// The same, with results on standard error.
    pub fn beside_stream(mut self) -> Self {
        self.stdout_taken = true;
        self
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// What was asked for: JSON, or text.
    pub fn answer(&self, json: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> Result<()> {
        let text = if self.json { encode(&json())? } else { text() };
        self.put(&text)
    }

    /// What was done: JSON, or text unless `--quiet`.
    pub fn done(&self, json: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> Result<()> {
        if self.quiet && !self.json {
            return Ok(());
        }
        self.answer(json, text)
    }

    fn put(&self, text: &str) -> Result<()> {
        if self.stdout_taken {
            eprint!("{text}");
            return Ok(());
        }
        write_stdout(text.as_bytes())
    }

    /// A remark on standard error, unless `--quiet`.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            eprintln!("cpr: {}", clean(text.as_ref()));
        }
    }

    /// A remark on standard error with `--verbose`.
    pub fn detail(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("cpr: {}", clean(&text()));
        }
    }

    /// The chain of an error, once, and what can be done; with `--json` an object, too.
    pub fn error(&self, error: &Error) {
        eprintln!("cpr: error: {}", clean(&error.chain()));
        if let Some(hint) = error.hint() {
            eprintln!("hint: {}", clean(hint));
        }
        if self.json
            && !self.stdout_taken
            && let Ok(text) = encode(&error_json(error))
        {
            // Nothing is left to be told, and nobody left to tell it.
            let _ = write_stdout(text.as_bytes());
        }
    }

    /// Shows how far a long operation is.
    pub fn progress(&self) -> Progress {
        Progress {
            shown: !self.quiet && !self.json && io::stderr().is_terminal(),
            told: self.verbose,
            began: Instant::now(),
            phase: String::new(),
            bar: None,
        }
    }
}

/// Writes to standard output. A reader that has gone away is no failure (`cpr images | head`).
pub fn write_stdout(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context(|| "write standard output"),
    }
}

/// One line of JSON.
fn encode(value: &impl Serialize) -> Result<String> {
    let mut text = serde_json::to_string(value)
        .map_err(|error| Error::new(ErrorKind::Internal, "encode the result").with_source(error))?;
    text.push('\n');
    Ok(text)
}

/// Any value of ours as JSON.
pub fn to_json(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|error| Error::new(ErrorKind::Internal, "encode the result").with_source(error))
}

/// An error as JSON.
pub fn error_json(error: &Error) -> Value {
    let mut causes = Vec::new();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    json!({"error": {
        "kind": error.kind(),
        "class": error.kind().class(),
        "message": error.message(),
        "causes": causes,
        "hint": error.hint(),
        "exit_code": error.kind().exit_code(),
    }})
}

/// Text with control characters made visible: names in an image are whatever its maker wrote.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if character.is_control() {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    Cow::Owned(safe)
}

/// Command and arguments on one line, quoted where a shell would need it.
pub fn command_line<S: AsRef<str>>(command: &[S]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c) || !c.is_ascii();
    let quoted = command.iter().map(|word| {
        let word = clean(word.as_ref());
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// `512 B`, `4.2 MB`: decimal units, three digits.
pub fn size(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = 0;
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    // 999.5 would be written as 1000.
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", units[unit])
}

/// `850 µs`, `4.3 ms`, `12.1 s`, `3 min 20 s`.
pub fn duration(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{:.0} µs", value / 1e3),
        1_000_000..100_000_000 => format!("{:.1} ms", value / 1e6),
        100_000_000..1_000_000_000 => format!("{:.0} ms", value / 1e6),
        1_000_000_000..60_000_000_000 => format!("{:.1} s", value / 1e9),
        _ => {
            let seconds = nanoseconds / 1_000_000_000;
            match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
                (0, m, s) => format!("{m} min {s} s"),
                (h, m, _) if h < 48 => format!("{h} h {m} min"),
                (h, ..) => format!("{} d {} h", h / 24, h % 24),
            }
        }
    }
}

/// Nanoseconds as milliseconds, for JSON.
pub fn milliseconds(nanoseconds: u64) -> f64 {
    (nanoseconds as f64 / 1e3).round() / 1e3
}

/// `2 min ago`.
pub fn ago(then: SystemTime, now: SystemTime) -> String {
    let Ok(passed) = now.duration_since(then) else {
        return "in the future".to_string();
    };
    match passed.as_secs() {
        0..2 => "just now".to_string(),
        seconds @ 2..60 => format!("{seconds} s ago"),
        seconds @ 60..3600 => format!("{} min ago", seconds / 60),
        seconds @ 3600..172_800 => format!("{} h ago", seconds / 3600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

/// RFC 3339 in UTC, to the second.
pub fn timestamp(time: SystemTime) -> String {
    // The formatter knows the years 1970 to 9999.
    let last = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(time.clamp(UNIX_EPOCH, last)).to_string()
}

/// A time given in milliseconds since the epoch.
pub fn from_ms(milliseconds: u64) -> SystemTime {
    UNIX_EPOCH
        .checked_add(Duration::from_millis(milliseconds))
        .unwrap_or(UNIX_EPOCH)
}

/// Columns of text.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: &'static [usize],
}

impl Table {
    /// A table with these headings; the columns numbered in `right` are set flush right.
    pub fn new(headings: &[&str], right: &'static [usize]) -> Self {
        Table {
            rows: vec![headings.iter().map(|h| (*h).to_string()).collect()],
            right,
        }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|c| clean(&c).into_owned()).collect());
    }

    /// One line for each row, columns two blanks apart.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let blanks = " ".repeat(widths[column] - cell.chars().count());
                let separator = if column == 0 { "" } else { "  " };
                let (before, after) = if self.right.contains(&column) {
                    (blanks.as_str(), "")
                } else {
                    ("", blanks.as_str())
                };
                for part in [separator, before, cell, after] {
                    line.push_str(part);
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A progress bar on standard error, where that is a terminal. It starts no thread: every change is drawn by the call
/// that brings it.
pub struct Progress {
    shown: bool,
    told: bool,
    began: Instant,
    phase: String,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// `done` of `total` bytes of `phase`.
    pub fn update(&mut self, phase: &str, done: u64, total: u64) {
        let next = phase != self.phase;
        if next {
            self.phase = phase.to_string();
            if self.told {
                let passed = duration(self.began.elapsed().as_nanos() as u64);
                eprintln!("cpr: after {passed}: {}", clean(phase));
            }
        }
        if !self.shown || self.began.elapsed() < BAR_AFTER {
            return;
        }
        let began = self.began;
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
            let template = "{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.with_elapsed(began.elapsed())
        });
        if next || bar.message().is_empty() {
            bar.set_message(clean(&self.phase).into_owned());
        }
        bar.update(|state| {
            state.set_len(total);
            state.set_pos(done.min(total));
        });
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (4_194_304, "4.19 MB"),
            (9_999_999, "10.0 MB"),
            (123_456_789, "123 MB"),
            (999_600_000, "1.00 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn durations() {
        for (nanoseconds, text) in [
            (12, "12 ns"),
            (850_000, "850 µs"),
            (4_320_000, "4.3 ms"),
            (432_000_000, "432 ms"),
            (12_100_000_000, "12.1 s"),
            (200_000_000_000, "3 min 20 s"),
            (7_500_000_000_000, "2 h 5 min"),
            (300_000_000_000_000, "3 d 11 h"),
        ] {
            assert_eq!(duration(nanoseconds), text);
        }
    }

    #[test]
    fn times() {
        let base = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let after = |seconds| ago(base, base + Duration::from_secs(seconds));
        assert_eq!(after(0), "just now");
        assert_eq!(after(59), "59 s ago");
        assert_eq!(after(150), "2 min ago");
        assert_eq!(after(7200), "2 h ago");
        assert_eq!(after(300_000), "3 days ago");
        assert_eq!(timestamp(base), "2001-09-09T01:46:40Z");
        assert_eq!(timestamp(from_ms(u64::MAX)), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(clean("plain ü"), "plain ü");
        assert_eq!(clean("a\x1b[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(command_line(&["a b", "it's", "-x=1", ""]), r"'a b' 'it'\''s' -x=1 ''");
        let mut table = Table::new(&["A", "N"], &[1]);
        table.row(["x\ty".to_string(), "7".to_string()]);
        table.row(["z".to_string(), "1234".to_string()]);
        assert_eq!(table.render(), "A        N\nx\\ty     7\nz     1234\n");
    }
}

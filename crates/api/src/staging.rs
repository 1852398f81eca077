//! Files that are brought to a job's node before it starts, and away from it when it has ended.
//!
//! On the job's side a file is below its working directory. On the other side it is in the grid's area for files
//! (`area:PATH`), where every user has a part of it, or anywhere that the user can reach on the job's node (`/PATH`).

use cpr_types::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// What comes before the path of a file in the grid's area.
const AREA: &str = "area:";
/// Longest path.
const LONGEST: usize = 4096;
/// Most files each way.
pub(crate) const MOST: usize = 1000;

/// A file that is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Staging {
    /// The file.
    pub from: String,
    /// What it is to be called. Directories that are missing are made.
    pub to: String,
    /// It is appended to what is there, instead of taking its place. Not in a bucket.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub append: bool,
}

/// The side that is not the job's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside<'a> {
    /// A path below what the user has of the grid's area.
    Area(&'a str),
    /// A path of the job's node.
    Path(&'a str),
}

impl Staging {
    /// Understands `FROM > TO`, `TO < FROM`, and `>>` and `<<`, which append, as SAGA has them (GFD.90,
    /// `FileTransfer`).
    pub fn parse(text: &str) -> std::result::Result<Staging, String> {
        let at = text.find(['<', '>']).ok_or("write FROM>TO, or FROM>>TO to append")?;
        let (left, rest) = text.split_at(at);
        let operator = rest.chars().next().unwrap_or('>');
        let right = rest.trim_start_matches(operator);
        let length = rest.len() - right.len();
        if length > 2 || right.contains(['<', '>']) {
            return Err("there is more than one operator; write FROM>TO, or FROM>>TO to append".into());
        }
        let (left, right) = (left.trim().to_string(), right.trim().to_string());
        if left.is_empty() || right.is_empty() {
            return Err("write what is copied and what it is to be called, as FROM>TO".into());
        }
        let (from, to) = match operator {
            '>' => (left, right),
            _ => (right, left),
        };
        Ok(Staging {
            from,
            to,
            append: length == 2,
        })
    }

    /// The same file of one unit, or of one job of an array.
    pub(crate) fn numbered(&self, mark: &str, number: &str) -> Staging {
        Staging {
            from: self.from.replace(mark, number),
            to: self.to.replace(mark, number),
            append: self.append,
        }
    }

    /// Whether it is in the area, on either side.
    pub(crate) fn uses_area(&self) -> bool {
        self.from.starts_with(AREA) || self.to.starts_with(AREA)
    }

    /// Refuses what nobody could copy.
    pub(crate) fn check(&self, inward: bool) -> Result<()> {
        let refuse = |what: String| Err(Error::new(ErrorKind::Usage, format!("job is refused: {what}")));
        let (outside, inside) = match inward {
            true => (&self.from, &self.to),
            false => (&self.to, &self.from),
        };
        if !is_below(inside) {
            return refuse(format!(
                "{inside:?} is no path below the job's working directory, to which files are staged in and from which they \
                 are staged out"
            ));
        }
        match outside.strip_prefix(AREA) {
            Some(path) if is_below(path) => Ok(()),
            None if outside.strip_prefix('/').is_some_and(is_below) => Ok(()),
            _ => refuse(format!("{outside:?} is neither {AREA}PATH nor an absolute path")),
        }
    }
}

/// The outside of something that is staged; none where it is neither.
pub fn outside(text: &str) -> Option<Outside<'_>> {
    match text.strip_prefix(AREA) {
        Some(path) => Some(Outside::Area(path)),
        None => text.starts_with('/').then_some(Outside::Path(text)),
    }
}

/// Whether this is the path of something below a directory.
fn is_below(path: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    path.len() <= LONGEST && path.split('/').all(plain)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    // SAGA-JD-Core-FileTransfer
    #[test]
    fn all_four_operators_say_what_goes_where() {
        for (text, from, to, append) in [
            ("area:in>data/in", "area:in", "data/in", false),
            ("/srv/a >> log", "/srv/a", "log", true),
            ("area:out < result", "result", "area:out", false),
            ("area:log<<log", "log", "area:log", true),
        ] {
            let (from, to) = (from.to_string(), to.to_string());
            assert_eq!(Staging::parse(text).unwrap(), Staging { from, to, append }, "{text}");
        }
        for bad in ["in", ">in", "in>", "a>b>c", "a>>>b", "a<>b"] {
            assert!(Staging::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_the_jobs_is_below_its_directory_and_the_rest_is_in_the_area_or_absolute() {
        let check = |text: &str, inward| Staging::parse(text).unwrap().check(inward);
        for good in ["area:a>b", "/a/b>c/d", "area:x/y>>z"] {
            check(good, true).unwrap();
        }
        check("a/b>area:c", false).unwrap();
        for bad in [
            "area:a>/b",
            "area:a>../b",
            "area:../a>b",
            "area:a>b//c",
            "a>b",
            "area:>b",
            "/a/../b>c",
            "area:/a>b",
        ] {
            assert_eq!(check(bad, true).unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
        assert!(check("/a>area:b", false).is_err());
    }
}

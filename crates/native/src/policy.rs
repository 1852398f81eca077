//! How the contents of single files are treated (LBNL-3.6.8.4, LBNL-3.9.8.2): rules that name files by patterns.
//!
//! Pure text: no file is looked at here. What a rule does to a file is in [`crate::files`].

use cpr_image::model::FileContent;
use cpr_types::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// What to do about files whose path fits a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRule {
    /// Absolute path, with the wildcards of [`FileRule::parse`].
    pub pattern: String,
    /// What becomes of the contents; none says nothing about it.
    #[serde(default)]
    pub content: Option<FileContent>,
    /// Whether the file gets its saved length at restart; none says nothing about it.
    #[serde(default)]
    pub truncate: Option<bool>,
}

/// The words a rule is written with, for messages.
const WORDS: &str = "check, nocheck, truncate, nottruncate, append, backup-restore or backup-anonymous";

impl FileRule {
    /// Reads `PATTERN=POLICY[,POLICY…]`. A pattern that does not begin with `/` is taken below `directory`.
    ///
    /// `*` stands for anything but `/`, `**` for anything, `?` for one byte other than `/`, `[a-z]` and `[!a-z]` for
    /// one of a set and one not of it; `\` takes the next one as it is.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for anything else.
    pub fn parse(text: &str, directory: &str) -> Result<FileRule> {
        let usage = |what: String| Error::new(ErrorKind::Usage, what);
        let (pattern, words) = text
            .rsplit_once('=')
            .filter(|(pattern, _)| !pattern.is_empty())
            .ok_or_else(|| usage(format!("{text:?} is not PATTERN=POLICY")))?;
        let mut rule = FileRule {
            pattern: if pattern.starts_with('/') {
                pattern.to_owned()
            } else {
                format!("{}/{pattern}", directory.trim_end_matches('/'))
            },
            content: None,
            truncate: None,
        };
        for word in words.split(',') {
            let content = match word {
                "truncate" | "nottruncate" => {
                    if rule.truncate.replace(word == "truncate").is_some() {
                        return Err(usage(format!("{text:?} says twice whether to truncate")));
                    }
                    continue;
                }
                "check" => FileContent::Check,
                "nocheck" => FileContent::Nocheck,
                "append" => FileContent::Append,
                "backup-restore" => FileContent::BackupRestore,
                "backup-anonymous" => FileContent::BackupAnonymous,
                _ => return Err(usage(format!("{word:?} is not a policy for files")).with_hint(format!("use {WORDS}"))),
            };
            if rule.content.replace(content).is_some() {
                return Err(usage(format!("{text:?} has two policies that exclude each other")));
            }
        }
        if rule.truncate == Some(true)
            && !matches!(rule.content, None | Some(FileContent::Check | FileContent::Nocheck))
        {
            return Err(usage(format!("{text:?}: truncate goes with check and nocheck only")));
        }
        tokens(&rule.pattern).ok_or_else(|| usage(format!("{pattern:?} has a `[` or `\\` without its end")))?;
        Ok(rule)
    }

    /// The path it names, where it names a single one.
    pub fn literal(&self) -> Option<String> {
        let bytes: Option<Vec<u8>> = tokens(&self.pattern)?
            .into_iter()
            .map(|token| match token {
                Token::Byte(byte) => Some(byte),
                _ => None,
            })
            .collect();
        String::from_utf8(bytes?).ok()
    }

    /// The directory of the files it names, where wildcards are in the last part of the path only.
    pub fn directory(&self) -> Option<String> {
        let (directory, _) = self.pattern.rsplit_once('/')?;
        let plain = FileRule {
            pattern: format!("{directory}/"),
            ..self.clone()
        };
        plain.literal()
    }

    /// Whether it is about the file at `path`.
    pub fn is_about(&self, path: &[u8]) -> bool {
        tokens(&self.pattern).is_some_and(|tokens| fits(&tokens, path))
    }
}

/// What all rules together say about one file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What becomes of the contents.
    pub content: FileContent,
    /// Whether the file gets its saved length at restart.
    pub truncate: Option<bool>,
}

/// The verdict on the file at `path`: later rules win, each in what it says. None where no rule is about it.
pub fn verdict(rules: &[FileRule], path: &[u8]) -> Option<Verdict> {
    let mut found: Option<Verdict> = None;
    for rule in rules.iter().filter(|rule| rule.is_about(path)) {
        let verdict = found.get_or_insert_default();
        verdict.content = rule.content.unwrap_or(verdict.content);
        verdict.truncate = rule.truncate.or(verdict.truncate);
    }
    found
}

/// A part of a pattern.
#[derive(Debug)]
enum Token {
    Byte(u8),
    /// `?`
    One,
    /// `[…]`: ranges, and whether they are those that do not fit.
    Set(Vec<(u8, u8)>, bool),
    /// `*`
    Some,
    /// `**`
    All,
}

/// None for a pattern that ends too soon.
fn tokens(pattern: &str) -> Option<Vec<Token>> {
    let mut rest = pattern.bytes().peekable();
    let mut tokens = Vec::new();
    while let Some(byte) = rest.next() {
        tokens.push(match byte {
            b'\\' => Token::Byte(rest.next()?),
            b'?' => Token::One,
            b'*' if rest.next_if_eq(&b'*').is_some() => Token::All,
            b'*' => Token::Some,
            b'[' => {
                let not = rest.next_if(|b| matches!(b, b'!' | b'^')).is_some();
                let mut ranges = Vec::new();
                loop {
                    let first = rest.next()?;
                    if first == b']' && !ranges.is_empty() {
                        break Token::Set(ranges, not);
                    }
                    let mut last = first;
                    if rest.next_if_eq(&b'-').is_some() {
                        last = rest.next()?;
                        if last == b']' {
                            ranges.extend([(first, first), (b'-', b'-')]);
                            break Token::Set(ranges, not);
                        }
                    }
                    ranges.push((first, last));
                }
            }
            byte => Token::Byte(byte),
        });
    }
    Some(tokens)
}

fn fits(tokens: &[Token], path: &[u8]) -> bool {
    // For each length of path whether the tokens so far fit it: no pattern takes more than length times length.
    let mut now = vec![false; path.len() + 1];
    now[0] = true;
    for token in tokens {
        let mut next = vec![false; path.len() + 1];
        match token {
            Token::Some | Token::All => {
                let mut reached = false;
                for at in 0..=path.len() {
                    if at > 0 && path[at - 1] == b'/' && matches!(token, Token::Some) {
                        reached = false;
                    }
                    reached |= now[at];
                    next[at] = reached;
                }
            }
            _ => {
                for at in 0..path.len() {
                    let byte = path[at];
                    let good = match token {
                        Token::Byte(wanted) => byte == *wanted,
                        Token::Set(ranges, not) => {
                            byte != b'/' && ranges.iter().any(|(a, b)| (*a..=*b).contains(&byte)) != *not
                        }
                        _ => byte != b'/',
                    };
                    next[at + 1] = now[at] && good;
                }
            }
        }
        now = next;
    }
    now[path.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> FileRule {
        FileRule::parse(text, "/work").unwrap()
    }

    #[test]
    fn patterns_fit_as_documented() {
        for (pattern, path, good) in [
            ("/a/b", "/a/b", true),
            ("b", "/work/b", true),
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/b/c", false),
            ("/a/**", "/a/b/c", true),
            ("/**/*.log", "/x/y/z.log", true),
            ("/**/*.log", "/x/y/z.txt", false),
            ("/a/?[0-9]", "/a/x7", true),
            ("/a/?[!0-9]", "/a/x7", false),
            ("/a/[a-]", "/a/-", true),
            ("/a/\\*", "/a/*", true),
            ("/a/\\*", "/a/b", false),
            ("/a=b", "/a=b", true),
        ] {
            let rule = rule(&format!("{pattern}=check"));
            assert_eq!(rule.is_about(path.as_bytes()), good, "{pattern} {path}");
        }
        assert_eq!(rule("/a/\\*=check").literal().unwrap(), "/a/*");
        assert_eq!(rule("/a/*=check").literal(), None);
        assert_eq!(rule("/a/*.c=check").directory().unwrap(), "/a/");
        assert_eq!(rule("/*/b=check").directory(), None);
    }

    #[test]
    fn later_rules_win_in_what_they_say() {
        let rules = [
            rule("/**=check,truncate"),
            rule("/out/*=nocheck"),
            rule("/out/log=nottruncate"),
        ];
        let of = |path: &str| verdict(&rules, path.as_bytes()).unwrap();
        assert_eq!((of("/a").content, of("/a").truncate), (FileContent::Check, Some(true)));
        assert_eq!(
            (of("/out/x").content, of("/out/x").truncate),
            (FileContent::Nocheck, Some(true))
        );
        assert_eq!(
            (of("/out/log").content, of("/out/log").truncate),
            (FileContent::Nocheck, Some(false))
        );
        assert_eq!(verdict(&rules[1..], b"/a"), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "x",
            "=check",
            "x=",
            "x=chek",
            "x=check,nocheck",
            "x=truncate,nottruncate",
            "[a=check",
            "x\\=check",
            "x=append,truncate",
        ] {
            let result = FileRule::parse(bad, "/");
            assert_eq!(result.map_err(|e| e.kind()), Err(ErrorKind::Usage), "{bad}");
        }
    }
}

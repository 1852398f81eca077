//! `include/gridcpr.h` is generated from `src/ffi`: this test fails where the two differ, and `make header` writes the
//! header anew.

use std::fs;
use std::path::Path;

use cbindgen::{Builder, Config, DocumentationLength, DocumentationStyle, Language, Style};

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

/// What the files under `src/ffi` make of the header, in its order; the first of each has the heading.
const SECTIONS: [&[&str]; 7] = [
    &["errors"],
    &["callbacks"],
    &["sections"],
    &["checkpoints"],
    &["commands"],
    &["images"],
    &["app", "protected"],
];

/// Names of types: in Rust, and in C.
const TYPES: [(&str, &str); 12] = [
    ("CNotice", "gridcpr_notice"),
    ("CCallback", "gridcpr_callback"),
    ("CRestart", "gridcpr_restart"),
    ("CImage", "gridcpr_image"),
    ("CInfo", "gridcpr_image_info"),
    ("CProcess", "gridcpr_process"),
    ("CThread", "gridcpr_thread"),
    ("CRegion", "gridcpr_region"),
    ("CFile", "gridcpr_file"),
    ("App", "gridcpr_app"),
    ("COptions", "gridcpr_app_options"),
    ("CGeneration", "gridcpr_app_generation"),
];

const BEGIN: &str = "\
/** @file
 * libgridcpr: what a program can have to do with its own checkpoints.
 *
 * Functions that return int give zero or more on success and, where they fail, a negative number: one of
 * GRIDCPR_E_*, whose absolute value is the exit code that the cpr command has for the same error. gridcpr_error() then
 * tells what went wrong. Link with -lgridcpr (pkg-config: gridcpr). See docs/library.md or gridcpr(3).
 *
 * Generated from the sources of the library, crates/gridcpr/src/ffi, by `make header`.
 */
#ifndef GRIDCPR_H
#define GRIDCPR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern \"C\" {
#endif
";
const END: &str = "
#ifdef __cplusplus
}
#endif
#endif
";

fn source(name: &str) -> std::path::PathBuf {
    Path::new(CRATE).join("src/ffi").join(format!("{name}.rs"))
}

/// The declarations that files make.
fn declarations(files: &[&str]) -> String {
    let mut config = Config {
        language: Language::C,
        style: Style::Both,
        no_includes: true,
        usize_is_size_t: true,
        line_length: 120,
        tab_width: 4,
        documentation_style: DocumentationStyle::Doxy,
        documentation_length: DocumentationLength::Full,
        ..Config::default()
    };
    config.export.rename = TYPES.map(|(rust, c)| (rust.to_owned(), c.to_owned())).into();
    let builder = Builder::new().with_config(config);
    let builder = files
        .iter()
        .fold(builder, |builder, file| builder.with_src(source(file)));
    let mut text = Vec::new();
    builder.generate().expect("the sources can be parsed").write(&mut text);
    let mut text = tidy(&String::from_utf8(text).expect("a header is text"));
    for (_, name) in TYPES {
        text = text.replace(&format!("struct {name} *"), &format!("{name} *"));
    }
    text
}

/// Comments without what they say of safety, and no longer than they must be; negative numbers in parentheses.
fn tidy(made: &str) -> String {
    let mut text = String::new();
    let mut lines = made.lines();
    while let Some(line) = lines.next() {
        let begin = line.trim_start();
        if begin == "/**" {
            let indent = &line[..line.len() - begin.len()];
            let comment: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "*/").collect();
            let comment = comment.iter().map(|line| line.trim_start().trim_start_matches("* "));
            let comment: Vec<&str> = comment.take_while(|line| *line != "# Safety").collect();
            let comment = comment.join(&format!("\n{indent} * "));
            let comment = comment.trim_end_matches(['\n', '*', ' ']);
            let room = comment.contains('\n') || indent.len() + comment.len() <= 113;
            let end = if room { " */" } else { &format!("\n{indent} */") };
            text += &format!("{indent}/** {comment}{end}\n");
        } else if let Some((define, number)) = line.strip_prefix("#define ").and_then(|rest| rest.split_once(" -")) {
            text += &format!("#define {define} (-{number})\n");
        } else {
            text += line;
            text += "\n";
        }
    }
    text
}

fn header() -> String {
    let mut text = BEGIN.to_owned();
    for files in SECTIONS {
        let first = fs::read_to_string(source(files[0])).expect("a source can be read");
        let heading = first.lines().next().and_then(|line| line.strip_prefix("//! "));
        let heading = heading.expect("a source begins with its heading");
        text += &format!("\n/* ---- {heading} {} */\n\n", "-".repeat(108 - heading.len()));
        text += declarations(files).trim();
        text += "\n";
    }
    text + END
}

#[test]
fn the_header_is_what_the_sources_make_of_it() {
    let path = Path::new(CRATE).join("include/gridcpr.h");
    let made = header();
    if std::env::var_os("UPDATE_HEADER").is_some() {
        fs::write(&path, &made).expect("the header can be written");
    }
    let committed = fs::read_to_string(&path).expect("the header can be read");
    assert!(
        committed == made,
        "include/gridcpr.h is not what src/ffi makes of it: make header"
    );
}

//! libgridcpr for programs of tests.

#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Cpr, PATIENCE, finish};

/// The source tree.
pub const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// libgridcpr.so under the name it is installed with, in the test's directory.
pub fn library(cpr: &Cpr) -> PathBuf {
    // Named so that cargo builds it.
    let _ = gridcpr::start;
    let library = cpr.work.join("libgridcpr.so.0");
    if !library.exists() {
        let own = std::env::current_exe().expect("a program has a name");
        fs::copy(own.with_file_name("libgridcpr.so"), &library).expect("the library can be copied");
    }
    library
}

/// Compiles a C program of the source tree with the library, as a user would do it, to this name.
pub fn compile_with_library(cpr: &Cpr, source: &str, name: &str) -> String {
    let program = cpr.work.join(name);
    let mut command = Command::new("gcc");
    command.args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-I"]);
    command.arg(Path::new(ROOT).join("crates/gridcpr/include"));
    command.arg("-o").arg(&program).arg(Path::new(ROOT).join(source));
    command.arg(library(cpr));
    command.arg(format!("-Wl,-rpath,{}", cpr.work.display())).arg("-lm");
    finish(&cpr.work, command, PATIENCE).good();
    cpr.give(&program);
    program.display().to_string()
}

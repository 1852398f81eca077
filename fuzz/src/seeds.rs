//! Writes sound inputs for every target, from which the fuzzer goes on: DIRECTORY/TARGET/sound.

#[path = "../../crates/app/tests/common/mod.rs"]
mod app;
#[path = "../../crates/image/tests/common/mod.rs"]
mod image;

use std::fs;
use std::path::Path;

use cpr_app::{ElementType, Options, Order, Store, Variable};

fn main() {
    let directory = std::env::args_os().nth(1).expect("usage: seeds DIRECTORY");
    let directory = Path::new(&directory);
    let whole = image::image();
    let base = tempfile::tempdir().expect("a directory");
    let part = part(base.path());
    for (target, bytes) in [
        ("image_file", whole.as_slice()),
        ("image_metadata", image::metadata(&whole)),
        ("app_part", &part),
        ("app_metadata", app::metadata(&part)),
    ] {
        fs::create_dir_all(directory.join(target)).expect("a directory can be made");
        fs::write(directory.join(target).join("sound"), bytes).expect("an input can be written");
    }
}

/// A part with two variables and an attribute.
fn part(base: &Path) -> Vec<u8> {
    let options = Options::from_environment(base, "seed").expect("options");
    let mut store = Store::open(options).expect("a store");
    store.set_attribute("step", "7");
    let data = [7u8; 64];
    let variable = |name, element, shape| Variable {
        name,
        element,
        shape,
        order: Order::C,
        data: &data,
    };
    let written = store.write(&[
        variable("one", ElementType::Float64, &[2, 4]),
        variable("two", ElementType::Bytes, &[64]),
    ]);
    let generation = written.expect("a generation").generation;
    let path = base.join(format!("seed/{generation:06}/part-00000"));
    fs::read(path).expect("the part can be read")
}

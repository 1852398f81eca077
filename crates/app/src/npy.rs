//! The header of numpy's `.npy` files, version 1.0 and 2.0
//! (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).

use crate::part::VariableInfo;
use crate::variable::{ElementType, Order};

/// The header of a file with this variable's elements after it, in this machine's byte order.
pub fn header(variable: &VariableInfo) -> Vec<u8> {
    let order = if cfg!(target_endian = "little") { '<' } else { '>' };
    let (kind, size) = match variable.element {
        ElementType::Int8 | ElementType::Int16 | ElementType::Int32 | ElementType::Int64 => ('i', true),
        ElementType::Uint8 | ElementType::Uint16 | ElementType::Uint32 | ElementType::Uint64 => ('u', true),
        ElementType::Float32 | ElementType::Float64 => ('f', true),
        ElementType::Complex64 | ElementType::Complex128 => ('c', true),
        ElementType::Bytes => ('u', false),
    };
    let width = if size { variable.element.size() } else { 1 };
    let order = if width == 1 { '|' } else { order };
    let shape: Vec<String> = variable.shape.iter().map(u64::to_string).collect();
    let shape = match shape.as_slice() {
        [one] => format!("({one},)"),
        several => format!("({})", several.join(", ")),
    };
    let fortran = if variable.order == Order::Fortran {
        "True"
    } else {
        "False"
    };
    let mut text = format!("{{'descr': '{order}{kind}{width}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    let short = text.len() < 60_000;
    let prefix = if short { 10 } else { 12 };
    // The elements begin at a multiple of 64.
    let padded = (prefix + text.len() + 1).next_multiple_of(64) - prefix;
    while text.len() + 1 < padded {
        text.push(' ');
    }
    text.push('\n');
    let mut header = b"\x93NUMPY".to_vec();
    if short {
        header.extend_from_slice(&[1, 0]);
        header.extend_from_slice(&(text.len() as u16).to_le_bytes());
    } else {
        header.extend_from_slice(&[2, 0]);
        header.extend_from_slice(&(text.len() as u32).to_le_bytes());
    }
    header.extend_from_slice(text.as_bytes());
    header
}

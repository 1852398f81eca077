//! The header of numpy's `.npy` files, version 1.0 to 3.0
//! (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).

use cpr_types::{Error, ErrorKind, Result};

use crate::part::VariableInfo;
use crate::variable::{ElementType, Order, bytes_of, swap};

/// First bytes of a file.
const MAGIC: &[u8] = b"\x93NUMPY";

/// An array that a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array {
    /// Type of its elements.
    pub element: ElementType,
    /// Elements along each dimension.
    pub shape: Vec<u64>,
    /// Order of the elements.
    pub order: Order,
    /// All elements, in this machine's byte order.
    pub data: Vec<u8>,
}

/// The array in the bytes of a file; none where that is no file of numpy.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for elements that cannot be saved, [`ErrorKind::Damaged`].
pub fn parse(file: &[u8]) -> Result<Option<Array>> {
    let Some(rest) = file.strip_prefix(MAGIC) else {
        return Ok(None);
    };
    let damaged = || Error::new(ErrorKind::Damaged, "the header of the file of numpy cannot be read");
    let (length, start) = match rest {
        [1, _, low, high, ..] => (usize::from(u16::from_le_bytes([*low, *high])), 4),
        [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 6),
        _ => return Err(damaged()),
    };
    let text = rest
        .get(start..start + length)
        .and_then(|text| std::str::from_utf8(text).ok());
    let text = text.ok_or_else(damaged)?;
    let after = |key: &str| text.split_once(key).map(|(_, value)| value.trim_start());
    let kind = after("'descr':").ok_or_else(damaged)?;
    let kind = kind.strip_prefix('\'').and_then(|kind| kind.split('\'').next());
    let kind = kind.ok_or_else(|| Error::new(ErrorKind::Unsupported, "records of numpy cannot be saved"))?;
    let foreign = kind.starts_with(if cfg!(target_endian = "little") { '>' } else { '<' });
    let element = match kind.trim_start_matches(['<', '>', '|', '=']) {
        "i1" => ElementType::Int8,
        "i2" => ElementType::Int16,
        "i4" => ElementType::Int32,
        "i8" => ElementType::Int64,
        "u1" | "b1" => ElementType::Uint8,
        "u2" => ElementType::Uint16,
        "u4" => ElementType::Uint32,
        "u8" => ElementType::Uint64,
        "f4" => ElementType::Float32,
        "f8" => ElementType::Float64,
        "c8" => ElementType::Complex64,
        "c16" => ElementType::Complex128,
        _ => {
            let text = format!("elements of numpy's type {kind:?} cannot be saved");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
    };
    let order = match after("'fortran_order':").ok_or_else(damaged)? {
        value if value.starts_with("True") => Order::Fortran,
        _ => Order::C,
    };
    let shape = after("'shape':").and_then(|value| value.strip_prefix('('));
    let shape = shape.and_then(|value| value.split(')').next()).ok_or_else(damaged)?;
    let numbers = shape.split(',').map(str::trim).filter(|number| !number.is_empty());
    let shape: Vec<u64> = numbers
        .map(|number| number.parse().map_err(|_| damaged()))
        .collect::<Result<_>>()?;
    let mut data = rest.get(start + length..).unwrap_or_default().to_vec();
    if bytes_of(element, &shape) != Some(data.len() as u64) {
        return Err(damaged());
    }
    if foreign {
        swap(&mut data, element.component());
    }
    Ok(Some(Array {
        element,
        shape,
        order,
        data,
    }))
}

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
    let mut header = MAGIC.to_vec();
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (element, shape, order) in [
            (ElementType::Float64, vec![2, 3], Order::Fortran),
            (ElementType::Int16, vec![3], Order::C),
            (ElementType::Complex64, vec![], Order::C),
        ] {
            let data: Vec<u8> = (0..bytes_of(element, &shape).unwrap()).map(|n| n as u8).collect();
            let info = VariableInfo {
                name: "x".to_owned(),
                element,
                shape: shape.clone(),
                order,
                bytes: data.len() as u64,
                chunks: Vec::new(),
            };
            let file = [header(&info), data.clone()].concat();
            let array = Array {
                element,
                shape,
                order,
                data,
            };
            assert_eq!(parse(&file).unwrap(), Some(array));
            assert_eq!(parse(&file[..file.len() - 1]).unwrap_err().kind(), ErrorKind::Damaged);
        }
        assert_eq!(parse(b"something else").unwrap(), None);
        assert!(parse(b"\x93NUMPY\x01").is_err());
        let foreign = b"\x93NUMPY\x01\x00\x39\x00{'descr': '>i2', 'fortran_order': False, 'shape': (1,)} \n\x01\x02";
        assert_eq!(parse(foreign).unwrap().unwrap().data, 0x0102u16.to_ne_bytes());
    }
}

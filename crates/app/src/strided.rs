//! Arrays whose elements do not lie one after the other.

use cpr_types::{Error, ErrorKind, Result};

/// Calls `each` with the offset of every element, the last index running fastest.
fn walk(shape: &[u64], strides: &[u64], size: u64, length: u64, each: &mut dyn FnMut(usize)) -> Result<()> {
    let wrong = |what: &str| Err(Error::new(ErrorKind::Usage, format!("strides: {what}")));
    if shape.len() != strides.len() {
        return wrong("there has to be one for each dimension");
    }
    if shape.contains(&0) {
        return Ok(());
    }
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(0u64, |all, (n, stride)| all.checked_add((n - 1).checked_mul(*stride)?));
    if last
        .and_then(|last| last.checked_add(size))
        .is_none_or(|end| end > length)
    {
        return wrong("they lead out of the array");
    }
    let mut index = vec![0u64; shape.len()];
    loop {
        let offset: u64 = index.iter().zip(strides).map(|(i, stride)| i * stride).sum();
        each(offset as usize);
        let mut dimension = shape.len();
        loop {
            let Some(before) = dimension.checked_sub(1) else {
                return Ok(());
            };
            dimension = before;
            index[dimension] += 1;
            if index[dimension] < shape[dimension] {
                break;
            }
            index[dimension] = 0;
        }
    }
}

/// The elements of an array, one after the other in C order. `strides` are the bytes from one index to the next, for
/// each dimension.
///
/// # Errors
/// [`ErrorKind::Usage`] where an element would lie outside of `data`.
pub fn gather(data: &[u8], shape: &[u64], strides: &[u64], size: u64) -> Result<Vec<u8>> {
    let mut gathered = Vec::new();
    let width = size as usize;
    walk(shape, strides, size, data.len() as u64, &mut |at| {
        gathered.extend_from_slice(&data[at..at + width]);
    })?;
    Ok(gathered)
}

/// The opposite of [`gather`].
///
/// # Errors
/// As [`gather`], and where there are not as many elements.
pub fn scatter(elements: &[u8], data: &mut [u8], shape: &[u64], strides: &[u64], size: u64) -> Result<()> {
    let width = size as usize;
    let mut from = elements.chunks_exact(width.max(1));
    let count = shape.iter().product::<u64>();
    if from.len() as u64 != count {
        return Err(Error::new(ErrorKind::Usage, "there are not as many elements"));
    }
    walk(shape, strides, size, data.len() as u64, &mut |at| {
        if let Some(element) = from.next() {
            data[at..at + width].copy_from_slice(element);
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_gathered_and_scattered() {
        let array: Vec<u8> = (0..24).collect();
        // Columns 1 and 3 of a 4 by 6 array.
        let columns = gather(&array[1..], &[4, 2], &[6, 2], 1).unwrap();
        assert_eq!(columns, [1, 3, 7, 9, 13, 15, 19, 21]);
        let mut back = vec![0u8; 23];
        scatter(&columns, &mut back, &[4, 2], &[6, 2], 1).unwrap();
        assert_eq!(back[20], 21);
        assert_eq!(back.iter().filter(|b| **b != 0).count(), 8);
        assert!(gather(&array, &[4, 7], &[6, 1], 1).is_err());
        assert!(gather(&array, &[4], &[6, 1], 1).is_err());
        assert!(gather(&array, &[2, u64::MAX], &[1, u64::MAX], 1).is_err());
        assert_eq!(gather(&array, &[0, 5], &[9, 9], 1).unwrap(), [0u8; 0]);
    }
}

//! What a variable is: the type of its elements, its shape and its order.

use cpr_types::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// Type of the elements of an array. All numbers are two's complement or IEEE 754.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ElementType {
    Int8,
    Int16,
    Int32,
    Int64,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Float32,
    Float64,
    /// Two `Float32`: real and imaginary part.
    Complex64,
    /// Two `Float64`.
    Complex128,
    /// Bytes that only the program knows the meaning of. They are never converted.
    Bytes,
}

impl ElementType {
    /// Every type; the position of each is its number in the C interface.
    pub const ALL: [ElementType; 13] = [
        ElementType::Int8,
        ElementType::Int16,
        ElementType::Int32,
        ElementType::Int64,
        ElementType::Uint8,
        ElementType::Uint16,
        ElementType::Uint32,
        ElementType::Uint64,
        ElementType::Float32,
        ElementType::Float64,
        ElementType::Complex64,
        ElementType::Complex128,
        ElementType::Bytes,
    ];

    /// Bytes of one element.
    pub const fn size(self) -> u64 {
        match self {
            ElementType::Complex128 => 16,
            ElementType::Complex64 => 8,
            other => other.component(),
        }
    }

    /// Bytes of one number: what is turned round for another byte order.
    pub const fn component(self) -> u64 {
        match self {
            ElementType::Int8 | ElementType::Uint8 | ElementType::Bytes => 1,
            ElementType::Int16 | ElementType::Uint16 => 2,
            ElementType::Int32 | ElementType::Uint32 | ElementType::Float32 | ElementType::Complex64 => 4,
            ElementType::Int64 | ElementType::Uint64 | ElementType::Float64 | ElementType::Complex128 => 8,
        }
    }

    /// Its name, as in metadata and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            ElementType::Int8 => "int8",
            ElementType::Int16 => "int16",
            ElementType::Int32 => "int32",
            ElementType::Int64 => "int64",
            ElementType::Uint8 => "uint8",
            ElementType::Uint16 => "uint16",
            ElementType::Uint32 => "uint32",
            ElementType::Uint64 => "uint64",
            ElementType::Float32 => "float32",
            ElementType::Float64 => "float64",
            ElementType::Complex64 => "complex64",
            ElementType::Complex128 => "complex128",
            ElementType::Bytes => "bytes",
        }
    }
}

/// How the elements of an array with several dimensions follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// The last index runs fastest.
    #[default]
    C,
    /// The first index runs fastest.
    Fortran,
}

/// A variable to be written.
#[derive(Debug, Clone, Copy)]
pub struct Variable<'a> {
    /// Its name, unique in a checkpoint.
    pub name: &'a str,
    /// Type of its elements.
    pub element: ElementType,
    /// Elements along each dimension; empty for a single one.
    pub shape: &'a [u64],
    /// Order of the elements.
    pub order: Order,
    /// All elements, in this machine's byte order.
    pub data: &'a [u8],
}

impl Variable<'_> {
    /// Whether its parts fit each other.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] with what does not.
    pub fn check(&self) -> Result<()> {
        check_name(self.name)?;
        let bytes = bytes_of(self.element, self.shape)
            .ok_or_else(|| Error::new(ErrorKind::Usage, format!("variable {}: it is too large", self.name)))?;
        if bytes != self.data.len() as u64 {
            let text = format!(
                "variable {}: {} of {} elements take {bytes} bytes, and {} were given",
                self.name,
                self.element.name(),
                self.shape.iter().product::<u64>(),
                self.data.len()
            );
            return Err(Error::new(ErrorKind::Usage, text));
        }
        Ok(())
    }
}

/// Bytes of an array; none where they are too many to count.
pub fn bytes_of(element: ElementType, shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(element.size(), |all, &n| all.checked_mul(n))
}

/// Most bytes of a name.
const NAME_MAX: usize = 200;

/// Whether something can be the name of a variable.
///
/// # Errors
/// [`ErrorKind::Usage`].
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control) {
        let text = format!("{name:?} is no name: one has 1 to {NAME_MAX} bytes and no control characters");
        return Err(Error::new(ErrorKind::Usage, text));
    }
    Ok(())
}

/// Turns every number in `data` round, for another byte order.
pub fn swap(data: &mut [u8], component: u64) {
    if component > 1 {
        for number in data.chunks_exact_mut(component as usize) {
            number.reverse();
        }
    }
}

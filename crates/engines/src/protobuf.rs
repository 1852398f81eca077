//! As much of protobuf's encoding as CRIU's protocol needs: numbers, texts and messages.

/// Of a protobuf wire.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

/// A field to be encoded, by its number.
#[derive(Debug, Clone)]
pub(crate) enum Field {
    Number(u32, u64),
    Text(u32, String),
    Message(u32, Vec<Field>),
}

/// A message that came: its fields in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message(Vec<(u64, Value)>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

impl Message {
    /// Encodes fields.
    pub(crate) fn encode(fields: &[Field]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in fields {
            match field {
                Field::Number(number, value) => {
                    put(&mut bytes, u64::from(*number) << 3 | VARINT);
                    put(&mut bytes, *value);
                }
                Field::Text(number, text) => put_bytes(&mut bytes, *number, text.as_bytes()),
                Field::Message(number, fields) => put_bytes(&mut bytes, *number, &Message::encode(fields)),
            }
        }
        bytes
    }

    /// Decodes a message; none where it is none.
    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Message> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = take(&mut bytes)?;
            let value = match key & 7 {
                VARINT => Value::Number(take(&mut bytes)?),
                BYTES => {
                    let length = usize::try_from(take(&mut bytes)?).ok()?;
                    Value::Bytes(split(&mut bytes, length)?.to_vec())
                }
                FIXED_64 => Value::Bytes(split(&mut bytes, 8)?.to_vec()),
                FIXED_32 => Value::Bytes(split(&mut bytes, 4)?.to_vec()),
                _ => return None,
            };
            fields.push((key >> 3, value));
        }
        Some(Message(fields))
    }

    fn last(&self, number: u64) -> Option<&Value> {
        self.0
            .iter()
            .rev()
            .find(|(found, _)| *found == number)
            .map(|(_, value)| value)
    }

    /// A field that is a number.
    pub(crate) fn number(&self, number: u64) -> Option<u64> {
        match self.last(number)? {
            Value::Number(value) => Some(*value),
            Value::Bytes(_) => None,
        }
    }

    /// A field that is a text.
    pub(crate) fn text(&self, number: u64) -> Option<String> {
        match self.last(number)? {
            Value::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            Value::Number(_) => None,
        }
    }

    /// A field that is a message.
    pub(crate) fn message(&self, number: u64) -> Option<Message> {
        match self.last(number)? {
            Value::Bytes(bytes) => Message::decode(bytes),
            Value::Number(_) => None,
        }
    }
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn put_bytes(bytes: &mut Vec<u8>, number: u32, value: &[u8]) {
    put(bytes, u64::from(number) << 3 | BYTES);
    put(bytes, value.len() as u64);
    bytes.extend_from_slice(value);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn split<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (first, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(first)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let fields = [
            Field::Number(1, 1),
            Field::Message(2, vec![Field::Number(68, u64::MAX), Field::Text(10, "a ü".to_string())]),
            Field::Number(1, 300),
        ];
        let bytes = Message::encode(&fields);
        let message = Message::decode(&bytes).unwrap();
        assert_eq!(message.number(1), Some(300));
        let inner = message.message(2).unwrap();
        assert_eq!(inner.number(68), Some(u64::MAX));
        assert_eq!(inner.text(10).as_deref(), Some("a ü"));
        assert_eq!(
            (message.text(1), message.number(2), message.number(9)),
            (None, None, None)
        );
        for cut in 1..bytes.len() {
            // Never a panic, and no more fields than there are.
            let cut = Message::decode(&bytes[..cut]);
            assert!(cut.is_none_or(|message| message.0.len() < 3));
        }
        assert!(Message::decode(&[0xff; 12]).is_none());
        assert!(Message::decode(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1]).is_none());
    }
}

//! The part of HTTP/1.1 (RFC 9112) that a client of ours needs: one request on a connection, and its answer read as a
//! stream. Nothing an answer says makes it allocate without bound.

use std::io::{self, BufRead, BufReader, Read, Write};

use cpr_types::{Context, Error, ErrorKind, Result};

/// Longest head of an answer, bytes.
const LONGEST_HEAD: u64 = 64 << 10;

/// A connection: something to write a request to and read the answer from.
pub(crate) trait Connection: Read + Write + Send {}

impl<T: Read + Write + Send> Connection for T {}

/// An answer whose head has been read.
pub struct Answer {
    /// Status code.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// What follows the head, without transfer coding.
    pub body: Body,
}

/// Body of an answer.
pub struct Body {
    reader: BufReader<Box<dyn Connection>>,
    rest: Rest,
}

enum Rest {
    /// So many bytes.
    Known(u64),
    /// So many bytes of this chunk.
    Chunk(u64),
    /// To the end of the connection.
    ToEnd,
    Done,
}

impl Answer {
    /// A header by its name, which is in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// What is asked.
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) host: &'a str,
    /// Name and value; neither has line breaks.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: Option<&'a [u8]>,
}

/// Sends a request and reads the head of the answer.
pub(crate) fn exchange(mut connection: Box<dyn Connection>, request: &Request<'_>) -> Result<Answer> {
    let mut head = format!(
        "{} {} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\naccept: application/json\r\n",
        request.method, request.path, request.host
    );
    for (name, value) in request.headers {
        if value.chars().any(char::is_control) {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("header {name} has a control character in it"),
            ));
        }
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = request.body {
        head.push_str(&format!(
            "content-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        ));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(request.body.unwrap_or_default());
    connection
        .write_all(&bytes)
        .and_then(|()| connection.flush())
        .context(|| "send the request")?;
    let mut reader = BufReader::new(connection);
    let head = read_head(&mut reader)?;
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body: Body {
            reader,
            rest: head.rest,
        },
    })
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::Damaged, format!("the answer is not HTTP: {what}"))
}

/// What stands before a body.
struct Head {
    status: u16,
    headers: Vec<(String, String)>,
    rest: Rest,
}

fn read_head(reader: &mut impl BufRead) -> Result<Head> {
    let mut limited = reader.take(LONGEST_HEAD);
    let first = read_line(&mut limited)?;
    let mut words = first.split(' ');
    let status = match (words.next(), words.next().map(str::parse::<u16>)) {
        (Some("HTTP/1.1" | "HTTP/1.0"), Some(Ok(status))) => status,
        _ => return Err(bad("it has no status")),
    };
    let mut rest = Rest::ToEnd;
    let mut headers = Vec::new();
    loop {
        let line = read_line(&mut limited)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad("a header has no colon"))?;
        let (name, value) = (name.to_ascii_lowercase(), value.trim());
        headers.push((name.clone(), value.to_string()));
        match (name.as_str(), value) {
            ("content-length", value) => {
                rest = Rest::Known(value.parse().map_err(|_| bad("its length is not a number"))?);
            }
            ("transfer-encoding", value) if value.eq_ignore_ascii_case("chunked") => rest = Rest::Chunk(0),
            ("transfer-encoding", _) => return Err(bad("its transfer coding is not known")),
            _ => {}
        }
    }
    if status == 204 || status == 304 {
        rest = Rest::Done;
    }
    Ok(Head { status, headers, rest })
}

/// A line without its end.
fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).context(|| "read the answer")?;
    if line.pop() != Some(b'\n') {
        return Err(bad("it is cut off"));
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map_err(|_| bad("its head is not text"))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Body {
    /// Size of the next chunk; the line end after the chunk before has been read.
    fn next_chunk(&mut self) -> io::Result<u64> {
        let mut line = Vec::new();
        (&mut self.reader).take(1024).read_until(b'\n', &mut line)?;
        let text = std::str::from_utf8(&line).map_err(|_| invalid("a chunk has no size"))?;
        let digits = text.split(';').next().unwrap_or_default().trim();
        u64::from_str_radix(digits, 16).map_err(|_| invalid("a chunk has no size"))
    }

    fn end_of_chunk(&mut self) -> io::Result<()> {
        let mut end = [0; 2];
        self.reader.read_exact(&mut end)?;
        if end == *b"\r\n" {
            Ok(())
        } else {
            Err(invalid("a chunk is longer than it says"))
        }
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if let Rest::Chunk(0) = self.rest {
            let size = self.next_chunk()?;
            self.rest = if size == 0 { Rest::Done } else { Rest::Chunk(size) };
        }
        let limit = match self.rest {
            Rest::Known(0) | Rest::Done => return Ok(0),
            Rest::Known(rest) | Rest::Chunk(rest) => buffer.len().min(usize::try_from(rest).unwrap_or(usize::MAX)),
            Rest::ToEnd => buffer.len(),
        };
        let count = self.reader.read(&mut buffer[..limit])?;
        match &mut self.rest {
            Rest::ToEnd | Rest::Done => {}
            Rest::Known(_) | Rest::Chunk(_) if count == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Rest::Known(rest) => *rest -= count as u64,
            Rest::Chunk(rest) => {
                *rest -= count as u64;
                if *rest == 0 {
                    self.end_of_chunk()?;
                }
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A connection that takes anything and answers what it was made with.
    struct Canned(Cursor<Vec<u8>>);

    impl Read for Canned {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            // A byte at a time: boundaries fall everywhere.
            let length = buffer.len().min(1);
            self.0.read(&mut buffer[..length])
        }
    }

    impl Write for Canned {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn answer(text: &[u8]) -> Result<(u16, io::Result<String>)> {
        let request = Request {
            method: "GET",
            path: "/",
            host: "x",
            headers: &[],
            body: None,
        };
        let mut answer = exchange(Box::new(Canned(Cursor::new(text.to_vec()))), &request)?;
        let mut body = String::new();
        let read = answer.body.read_to_string(&mut body).map(|_| body);
        Ok((answer.status, read))
    }

    #[test]
    fn bodies_of_every_kind_are_read() {
        let text = |bytes: &[u8]| answer(bytes).unwrap().1.unwrap();
        assert_eq!(text(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcde"), "abc");
        assert_eq!(text(b"HTTP/1.1 200 OK\r\n\r\nabcde"), "abcde");
        assert_eq!(
            text(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3;x=y\r\ncde\r\n0\r\n\r\n"),
            "abcde"
        );
        assert_eq!(text(b"HTTP/1.1 204 No Content\r\n\r\n"), "");
    }

    #[test]
    fn what_is_cut_off_or_no_http_is_an_error() {
        assert!(answer(b"").is_err());
        assert!(answer(b"hello\r\n\r\n").is_err());
        assert!(answer(b"HTTP/1.1 200 OK\r\nContent-Le").is_err());
        assert!(answer(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n").is_err());
        let long = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'a'; 1 << 17]].concat();
        assert!(answer(&long).is_err());
        for cut in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef",
        ] {
            assert!(answer(cut).unwrap().1.is_err());
        }
    }
}

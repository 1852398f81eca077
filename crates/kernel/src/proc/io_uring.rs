//! What /proc/PID/fdinfo says of an io_uring instance.

/// An io_uring instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IoUring {
    /// Room for requests.
    pub entries: u32,
    /// Requests that the kernel has taken out so far, modulo 2^32.
    pub submitted: u32,
    /// Room for completions.
    pub completions: u32,
    /// Completions that the kernel has put in so far, modulo 2^32.
    pub completed: u32,
    /// The thread that takes requests out (IORING_SETUP_SQPOLL).
    pub thread: Option<i32>,
    /// Registered files by number; the name as the kernel shows it.
    pub files: Vec<Option<Vec<u8>>>,
    /// Registered memory by number: address and length.
    pub buffers: Vec<Option<(u64, u64)>>,
    /// Operations (IORING_OP_*) of requests that wait until something can be read or written.
    pub waiting: Vec<u8>,
    /// There are completions that the ring has no room for.
    pub overflows: bool,
}

/// Most numbers that files or memory can be registered under.
const MOST: usize = 1 << 20;

#[derive(PartialEq)]
enum Part {
    Head,
    Files,
    Buffers,
    Waiting,
    Overflow,
}

/// Parses `/proc/PID/fdinfo/FD`; none where it does not have all, as when the kernel is busy with the instance.
pub fn parse(text: &[u8]) -> Option<IoUring> {
    let mut found = IoUring::default();
    let (mut part, mut needed) = (Part::Head, 0);
    for line in text.split(|byte| *byte == b'\n') {
        match &part {
            Part::Waiting if line.starts_with(b"  op=") => {
                let digits = line[5..]
                    .split(|byte| !byte.is_ascii_digit())
                    .next()
                    .unwrap_or_default();
                found.waiting.push(std::str::from_utf8(digits).ok()?.parse().ok()?);
            }
            Part::Overflow if line.starts_with(b"  user_data=") => found.overflows = true,
            _ => {}
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let key = String::from_utf8_lossy(&line[..colon]);
        let value = line.get(colon + 1..).unwrap_or_default().trim_ascii();
        let words = String::from_utf8_lossy(value);
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        };
        let word = || u32::try_from(number(&words)?).ok();
        let count = || usize::try_from(number(&words)?).ok().filter(|count| *count <= MOST);
        match (key.as_ref(), &part) {
            ("SqMask", Part::Head) => (found.entries, needed) = (word()?.checked_add(1)?, needed + 1),
            ("CachedSqHead", Part::Head) => (found.submitted, needed) = (word()?, needed + 1),
            ("CqMask", Part::Head) => (found.completions, needed) = (word()?.checked_add(1)?, needed + 1),
            ("CachedCqTail", Part::Head) => (found.completed, needed) = (word()?, needed + 1),
            ("SqThread", Part::Head) => found.thread = number(&words).and_then(|thread| i32::try_from(thread).ok()),
            ("UserFiles", _) => {
                found.files = vec![None; count()?];
                (part, needed) = (Part::Files, needed + 1);
            }
            ("UserBufs", _) => {
                found.buffers = vec![None; count()?];
                (part, needed) = (Part::Buffers, needed + 1);
            }
            ("PollList", _) => (part, needed) = (Part::Waiting, needed + 1),
            ("CqOverflowList", _) => (part, needed) = (Part::Overflow, needed + 1),
            (index, Part::Files) => {
                let index: usize = index.trim().parse().ok()?;
                *found.files.get_mut(index)? = Some(value.to_vec());
            }
            (index, Part::Buffers) => {
                let index: usize = index.trim().parse().ok()?;
                let range = words
                    .split_once('/')
                    .and_then(|(address, length)| Some((number(address)?, number(length)?)));
                *found.buffers.get_mut(index)? = range;
            }
            _ => {}
        }
    }
    (needed == 8).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t12694534\nSqMask:\t0x7\nSqHead:\t2\nSqTail:\t2\n\
        CachedSqHead:\t2\nCqMask:\t0xf\nCqHead:\t0\nCqTail:\t1\nCachedCqTail:\t1\nSQEs:\t0\nCQEs:\t1\n    \
        0: user_data:5, res:99, flag:0\nSqThread:\t-1\nSqThreadCpu:\t-1\nSqTotalTime:\t0\nSqWorkTime:\t0\nUserFiles:\t3\n    \
        0: /dev/null\n    2: pipe:[12694542]\nUserBufs:\t2\n    0: 0x564ab5091320/9000\n    1: <none>\nPollList:\n  \
        op=6, task_works=0\nCqOverflowList:\nNAPI:\tdisabled\n";

    #[test]
    fn an_instance_with_all_there_is() {
        let found = parse(TEXT.as_bytes()).unwrap();
        assert_eq!(
            found,
            IoUring {
                entries: 8,
                submitted: 2,
                completions: 16,
                completed: 1,
                thread: None,
                files: vec![Some(b"/dev/null".to_vec()), None, Some(b"pipe:[12694542]".to_vec())],
                buffers: vec![Some((0x564a_b509_1320, 9000)), None],
                waiting: vec![6],
                overflows: false,
            }
        );
        let more = TEXT
            .replace("SqThread:\t-1", "SqThread:\t77")
            .replace("CqOverflowList:\n", "CqOverflowList:\n  user_data=1, res=2, flags=0\n");
        let found = parse(more.as_bytes()).unwrap();
        assert_eq!((found.thread, found.overflows), (Some(77), true));
    }

    #[test]
    fn what_is_not_whole_is_none() {
        assert_eq!(parse(b"pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t5\n"), None);
        assert_eq!(parse(TEXT.replace("PollList:\n", "").as_bytes()), None);
        assert_eq!(
            parse(TEXT.replace("UserFiles:\t3", "UserFiles:\t99999999999").as_bytes()),
            None
        );
        assert_eq!(parse(TEXT.replace("    2: pipe", "    3: pipe").as_bytes()), None);
    }
}

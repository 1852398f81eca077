//! Names of signals.

/// Standard signals and their numbers on x86_64 and aarch64.
const SIGNALS: [(&str, i32); 33] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
    // Other names of some.
    ("POLL", 29),
    ("IOT", 6),
];
/// First and last real-time signal as the C library counts them.
const REAL_TIME: (i32, i32) = (34, 64);

/// `TERM`, `SIGTERM`, `term`, `15`, `RTMIN`, `RTMIN+3` or `RTMAX-1`.
pub fn parse_signal(text: &str) -> Result<i32, String> {
    let unknown = || "not a signal; write for example TERM, USR1, RTMIN+1 or 15".to_string();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=REAL_TIME.1)
            .contains(&number)
            .then_some(number)
            .ok_or_else(unknown);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    let offset = |rest: &str, sign: char| match rest.strip_prefix(sign) {
        Some(digits) => digits.parse::<u8>().ok().map(i32::from),
        None => rest.is_empty().then_some(0),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        offset(rest, '+').map(|n| REAL_TIME.0 + n)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        offset(rest, '-').map(|n| REAL_TIME.1 - n)
    } else {
        None
    };
    number
        .filter(|n| (REAL_TIME.0..=REAL_TIME.1).contains(n))
        .ok_or_else(unknown)
}

/// The name of signal `number`, without `SIG`.
pub fn signal_name(number: i32) -> String {
    match SIGNALS.iter().find(|(_, known)| *known == number) {
        Some((name, _)) => (*name).to_string(),
        None if (REAL_TIME.0..=REAL_TIME.1).contains(&number) => match number - REAL_TIME.0 {
            0 => "RTMIN".to_string(),
            offset => format!("RTMIN+{offset}"),
        },
        None => number.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("sigusr1", 10),
            ("9", 9),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+2", 36),
            ("RTMAX-1", 63),
            ("IOT", 6),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for bad in [
            "", "0", "65", "-1", "SIG", "NONE", "RTMIN+31", "RTMAX-31", "RTMIN-1", "TERM ",
        ] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
        for number in 1..=64 {
            if !(32..=33).contains(&number) {
                assert_eq!(parse_signal(&signal_name(number)).unwrap(), number);
            }
        }
    }
}

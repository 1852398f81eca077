//! TCP segments as bytes: the one that ends what a side sends. Knows nothing of sockets.

use std::net::{IpAddr, SocketAddr};

const HEADER: usize = 20;
const FIN_ACK: u8 = 0x11;
const HOPS: u8 = 64;

/// A segment without data by which a side ends what it sends, acknowledging what it has received.
#[derive(Debug)]
pub(super) struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub sequence: u32,
    pub acknowledged: u32,
    /// As in the header, not scaled.
    pub window: u16,
}

impl Segment {
    /// The IP packet; none when the addresses are of two families.
    pub fn packet(&self) -> Option<Vec<u8>> {
        let mut tcp = Vec::with_capacity(HEADER);
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledged.to_be_bytes());
        tcp.extend([(HEADER as u8 / 4) << 4, FIN_ACK]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        let (mut packet, addresses) = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let addresses = [from.octets(), to.octets()].concat();
                let total = (2 * HEADER) as u16;
                let mut ip = vec![0x45, 0];
                ip.extend(total.to_be_bytes());
                // No number and no fragments; the kernel writes the checksum of this header.
                ip.extend([0, 0, 0x40, 0, HOPS, libc::IPPROTO_TCP as u8, 0, 0]);
                ip.extend(&addresses);
                (ip, addresses)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let addresses = [from.octets(), to.octets()].concat();
                let mut ip = vec![0x60, 0, 0, 0];
                ip.extend((HEADER as u16).to_be_bytes());
                ip.extend([libc::IPPROTO_TCP as u8, HOPS]);
                ip.extend(&addresses);
                (ip, addresses)
            }
            _ => return None,
        };
        let pseudo = [0, libc::IPPROTO_TCP as u8, 0, HEADER as u8];
        let sum = checksum(addresses.iter().chain(&pseudo).chain(&tcp));
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        packet.extend(tcp);
        Some(packet)
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum<'a>(bytes: impl Iterator<Item = &'a u8>) -> u16 {
    let mut sum = bytes
        .zip([8, 0].into_iter().cycle())
        .fold(0u32, |sum, (byte, shift)| sum + (u32::from(*byte) << shift));
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_over_a_segment_and_its_sum_is_zero() {
        for (from, to, ip) in [
            ("10.1.2.3:4444", "10.9.8.7:55", 20),
            ("[2001:db8::1]:4444", "[fe80::7]:55", 40),
        ] {
            let end = Segment {
                from: from.parse().unwrap(),
                to: to.parse().unwrap(),
                sequence: 0xfedc_ba98,
                acknowledged: 0x8765_4321,
                window: 0xfff1,
            };
            let packet = end.packet().unwrap();
            assert_eq!(packet.len(), ip + HEADER);
            let addresses = if ip == 20 { &packet[12..20] } else { &packet[8..40] };
            let pseudo = [0, 6, 0, 20];
            assert_eq!(checksum(addresses.iter().chain(&pseudo).chain(&packet[ip..])), 0);
        }
    }

    #[test]
    fn two_families_do_not_meet() {
        let end = Segment {
            from: "10.1.2.3:4".parse().unwrap(),
            to: "[::1]:5".parse().unwrap(),
            sequence: 0,
            acknowledged: 0,
            window: 0,
        };
        assert!(end.packet().is_none());
    }
}

//! Hosts that are network namespaces.

use std::fs;
use std::process::{Child, Command};

use super::{Cpr, Ended, PATIENCE, wait_until};

/// A network namespace, as long as it lives.
pub struct Net(Child);

impl Net {
    /// Two namespaces with a wire between them: the first has the address 1 of the network (`10.97.0`), the second 2.
    /// Its end of the wire is `va` in the first and `vb` in the second.
    pub fn pair(cpr: &Cpr, network: &str) -> [Net; 2] {
        let pair = [Net::new(), Net::new()];
        let [here, there] = [pair[0].pid(), pair[1].pid()];
        let veth = [
            "ip", "link", "add", "name", "va", "netns", &here, "type", "veth", "peer", "name", "vb", "netns", &there,
        ];
        cpr.program(&veth).good();
        for (number, (net, name)) in pair.iter().zip(["va", "vb"]).enumerate() {
            let address = format!("{network}.{}/24", number + 1);
            net.run(cpr, &["ip", "addr", "add", &address, "dev", name]).good();
            net.run(cpr, &["ip", "link", "set", name, "up"]).good();
            net.run(cpr, &["ip", "link", "set", "lo", "up"]).good();
        }
        pair
    }

    /// A new one.
    pub fn new() -> Net {
        let child = Command::new("unshare").args(["-n", "sleep", "1000"]).spawn();
        let net = Net(child.expect("unshare can be run"));
        let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
        wait_until(PATIENCE, "there is a network namespace", || {
            of(&net.pid()).is_some_and(|theirs| Some(theirs) != of("self"))
        });
        net
    }

    /// The process that holds it.
    pub fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// The words of a command that runs in there.
    pub fn command<'a>(&'a self, words: &[&'a str]) -> Vec<String> {
        let enter = ["nsenter", "-t", &self.pid(), "-n"].map(str::to_owned);
        enter.into_iter().chain(words.iter().map(|w| (*w).to_owned())).collect()
    }

    /// Runs a command in there.
    #[track_caller]
    pub fn run(&self, cpr: &Cpr, words: &[&str]) -> Ended {
        let line = self.command(words);
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        cpr.program(&line)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

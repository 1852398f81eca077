//! A real S3 server: `s3s-fs`, as `cargo install s3s-fs --features binary` makes it.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use super::{Site, wait_until};

/// A server that keeps the bucket `images` in a directory, and ends with this.
pub struct Server {
    child: Child,
    /// Host and port.
    pub address: String,
}

impl Server {
    /// None where the program is not installed.
    pub fn start(site: &Site) -> Option<Server> {
        fs::create_dir_all(site.path("s3/images")).unwrap();
        // A port that is free; whoever takes it before the server does makes the test fail, not pass.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("s3s-fs")
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--access-key", "ACCESS", "--secret-key", "SECRET"])
            .arg(site.path("s3"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let server = Server {
            child,
            address: format!("127.0.0.1:{port}"),
        };
        wait_until("the S3 server answers", || TcpStream::connect(&server.address).is_ok());
        Some(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! A store in a bucket of an S3 service. Requests are signed by `rusty-s3`, and carried by our own client of HTTP.
//!
//! An object appears when its upload is complete. Images that are larger than one part go part by part; a part that
//! fails is sent again, and an upload that fails is given up, so that the service does not keep its parts.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cpr_api::Client;
use cpr_api::http::Answer;
use cpr_types::{Context, Error, ErrorKind, Result};
use rusty_s3::actions::{CreateMultipartUpload, S3Action};
use rusty_s3::{Credentials, UrlStyle};
use url::Url;

use super::{checkpoint, name};
use crate::config::S3Config;
use crate::outside;

/// How long the signature of a request is good.
const VALID: Duration = Duration::from_secs(3600);
/// Smallest part of an upload, bytes; S3 wants 5 MiB at least.
const PART: u64 = 16 << 20;
/// Most parts of an upload; S3 takes 10 000.
const MOST_PARTS: u64 = 9_000;
/// Attempts at each request.
const ATTEMPTS: u32 = 4;
/// Pause before the second attempt; it doubles.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest answer that is not an image, bytes.
const LONGEST_ANSWER: u64 = 16 << 20;

/// A bucket, and what comes before the names of images in it.
pub struct Bucket {
    bucket: rusty_s3::Bucket,
    prefix: String,
    /// File with access key and secret key, read anew for each request; none: the environment has them.
    keys: Option<PathBuf>,
    client: Client,
}

impl Bucket {
    /// `BUCKET` or `BUCKET/PREFIX`.
    pub fn open(place: &str, config: &S3Config) -> Result<Bucket> {
        let usage = |what: String| Error::new(ErrorKind::Usage, what);
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let prefix = prefix.trim_matches('/');
        let url = outside::url(&config.endpoint).context(|| "understand s3.endpoint")?;
        let client = outside::client(&url, config.ca.as_deref())?;
        let bucket = rusty_s3::Bucket::new(url, UrlStyle::Path, bucket.to_string(), config.region.clone())
            .map_err(|error| usage(format!("s3://{place} is no bucket")).with_source(error))?;
        let bucket = Bucket {
            bucket,
            prefix: if prefix.is_empty() {
                String::new()
            } else {
                format!("{prefix}/")
            },
            keys: config.key_file.clone(),
            client,
        };
        bucket.credentials()?;
        Ok(bucket)
    }

    fn credentials(&self) -> Result<Credentials> {
        let missing = |error: Error| {
            error.with_hint("s3.key_file has the access key in its first line and the secret key in its second")
        };
        match &self.keys {
            Some(path) => read_keys(path).map_err(missing),
            None => Credentials::from_env().ok_or_else(|| {
                missing(Error::new(
                    ErrorKind::Usage,
                    "neither s3.key_file nor AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are set",
                ))
            }),
        }
    }

    fn object(&self, id: i64) -> String {
        format!("{}{}", self.prefix, name(id))
    }

    /// Sends a signed request, again where that may help.
    fn send(&self, method: &str, url: &Url, headers: &[(&str, &str)], body: Option<&[u8]>) -> Result<Answer> {
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_string(),
        };
        let mut pause = PAUSE;
        for attempt in 1.. {
            let failure = match self.client.exchange(method, &path, body, headers) {
                Ok(answer) if (200..300).contains(&answer.status) => return Ok(answer),
                Ok(answer) => {
                    let status = answer.status;
                    let kind = match status {
                        404 => ErrorKind::NotFound,
                        401 | 403 => ErrorKind::Denied,
                        429 | 500..=599 => ErrorKind::Busy,
                        _ => ErrorKind::Io,
                    };
                    let said = text(answer).unwrap_or_default();
                    let code = said.split("<Code>").nth(1).and_then(|rest| rest.split('<').next());
                    let code: String = code.unwrap_or_default().chars().take(100).collect();
                    // What follows the `?` is a signature: not to be told.
                    Error::new(
                        kind,
                        format!("S3 answers {method} {} with status {status} {code}", url.path()),
                    )
                }
                Err(error) => error,
            };
            let again = matches!(failure.kind(), ErrorKind::Busy | ErrorKind::Io | ErrorKind::TimedOut);
            if !again || attempt == ATTEMPTS {
                return Err(failure);
            }
            std::thread::sleep(pause);
            pause *= 2;
        }
        Err(Error::new(ErrorKind::Internal, "a loop without end has ended"))
    }

    pub fn put(&self, id: i64, image: &mut dyn Read, bytes: u64) -> Result<()> {
        self.put_object(&name(id), image, bytes)
    }

    /// Puts an object of this name there, below our prefix.
    pub fn put_object(&self, name: &str, image: &mut dyn Read, bytes: u64) -> Result<()> {
        let credentials = self.credentials()?;
        let object = format!("{}{name}", self.prefix);
        let length = PART.max(bytes / MOST_PARTS + 1);
        let mut part = Vec::new();
        read_part(image, length, &mut part)?;
        if bytes <= length {
            let url = self.bucket.put_object(Some(&credentials), &object).sign(VALID);
            return self.send("PUT", &url, &[], Some(&part)).map(drop);
        }
        let url = self
            .bucket
            .create_multipart_upload(Some(&credentials), &object)
            .sign(VALID);
        let begun = text(self.send("POST", &url, &[], Some(b""))?)?;
        let begun = CreateMultipartUpload::parse_response(&begun)
            .map_err(|error| not_understood("the beginning of an upload", error))?;
        let upload = begun.upload_id();
        let done = self.put_parts(&credentials, &object, upload, image, length, part);
        if done.is_err() {
            let url = self
                .bucket
                .abort_multipart_upload(Some(&credentials), &object, upload)
                .sign(VALID);
            // Why it failed is told; parts that stay behind are the service's to expire.
            let _ = self.send("DELETE", &url, &[], None);
        }
        done
    }

    fn put_parts(
        &self,
        credentials: &Credentials,
        object: &str,
        upload: &str,
        image: &mut dyn Read,
        length: u64,
        mut part: Vec<u8>,
    ) -> Result<()> {
        let mut marks = Vec::new();
        while !part.is_empty() {
            let number = u16::try_from(marks.len() + 1)
                .map_err(|error| Error::new(ErrorKind::Internal, "an upload has too many parts").with_source(error))?;
            let action = self.bucket.upload_part(Some(credentials), object, number, upload);
            let answer = self.send("PUT", &action.sign(VALID), &[], Some(&part))?;
            let mark = answer.header("etag").map(|mark| mark.trim_matches('"').to_string());
            marks.push(mark.ok_or_else(|| Error::new(ErrorKind::Damaged, "S3 gives a part no mark"))?);
            read_part(image, length, &mut part)?;
        }
        let marks = marks.iter().map(String::as_str);
        let action = self
            .bucket
            .complete_multipart_upload(Some(credentials), object, upload, marks);
        let url = action.sign(VALID);
        let answer = text(self.send("POST", &url, &[], Some(action.body().as_bytes()))?)?;
        // It may begin to answer with success, and then say that there was none.
        if answer.contains("<Error>") {
            return Err(Error::new(ErrorKind::Io, "S3 could not complete the upload"));
        }
        Ok(())
    }

    pub fn read(&self, id: i64, offset: u64) -> Result<Box<dyn Read>> {
        let credentials = self.credentials()?;
        let object = self.object(id);
        let url = self.bucket.get_object(Some(&credentials), &object).sign(VALID);
        let range = format!("bytes={offset}-");
        let headers: &[(&str, &str)] = if offset > 0 { &[("range", &range)] } else { &[] };
        let answer = self.send("GET", &url, headers, None)?;
        if offset > 0 && answer.status != 206 {
            return Err(Error::new(
                ErrorKind::Damaged,
                "S3 sends an image as a whole though a part was asked for",
            ));
        }
        Ok(Box::new(answer.body))
    }

    /// An object of this name, and how long it is.
    pub fn read_object(&self, name: &str) -> Result<(Box<dyn Read>, u64)> {
        let credentials = self.credentials()?;
        let object = format!("{}{name}", self.prefix);
        let url = self.bucket.get_object(Some(&credentials), &object).sign(VALID);
        let answer = self.send("GET", &url, &[], None)?;
        let length = answer
            .header("content-length")
            .and_then(|text| text.trim().parse().ok());
        let length = length.ok_or_else(|| Error::new(ErrorKind::Damaged, "S3 does not say how long an object is"))?;
        Ok((Box::new(answer.body), length))
    }

    pub fn list(&self) -> Result<Vec<(String, i64)>> {
        let credentials = self.credentials()?;
        let mut found = Vec::new();
        let mut next = None;
        loop {
            let mut action = self.bucket.list_objects_v2(Some(&credentials));
            action.with_prefix(self.prefix.clone());
            // What is deeper is not ours.
            action.with_delimiter("/");
            if let Some(next) = next {
                action.with_continuation_token(next);
            }
            let page = text(self.send("GET", &action.sign(VALID), &[], None)?)?;
            if !page.contains("<ListBucketResult") {
                return Err(Error::new(
                    ErrorKind::Damaged,
                    "what S3 says of a list is not understood",
                ));
            }
            for key in elements(&page, "Key") {
                // Names of ours need no escapes; what comes before may have some.
                let name = key.rsplit('/').next().unwrap_or_default();
                if let Some(id) = checkpoint(name) {
                    found.push((name.to_string(), id));
                }
            }
            next = elements(&page, "NextContinuationToken").next().map(unescaped);
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        let credentials = self.credentials()?;
        let object = format!("{}{name}", self.prefix);
        let url = self.bucket.delete_object(Some(&credentials), &object).sign(VALID);
        match self.send("DELETE", &url, &[], None) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map(drop),
        }
    }
}

/// What is in the elements of this name. Services leave out much of what a list should have, so that no more is looked
/// at than is needed.
fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    let (begin, end) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let (_, after) = rest.split_once(&begin)?;
        let (inner, after) = after.split_once(&end)?;
        rest = after;
        Some(inner)
    })
}

/// Text of XML without its escapes.
fn unescaped(text: &str) -> String {
    // In this order: `&amp;lt;` stands for `&lt;`.
    [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#34;", "\""),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ]
    .iter()
    .fold(text.to_string(), |text, (escape, plain)| text.replace(escape, plain))
}

fn not_understood(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Damaged, format!("what S3 says of {what} is not understood")).with_source(error)
}

/// Access key and secret key, each on a line of its own.
fn read_keys(path: &Path) -> Result<Credentials> {
    let text = std::fs::read_to_string(path).context(|| format!("read {}", path.display()))?;
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    match (lines.next(), lines.next()) {
        (Some(access), Some(secret)) => Ok(Credentials::new(access, secret)),
        _ => Err(Error::new(
            ErrorKind::Usage,
            format!("{} has not two keys", path.display()),
        )),
    }
}

/// Reads up to `length` bytes into an emptied `part`.
fn read_part(image: &mut dyn Read, length: u64, part: &mut Vec<u8>) -> Result<()> {
    part.clear();
    image
        .take(length)
        .read_to_end(part)
        .context(|| "read an image")
        .map(drop)
}

fn text(answer: Answer) -> Result<String> {
    let mut text = String::new();
    let what = || "read what S3 answers";
    answer
        .body
        .take(LONGEST_ANSWER)
        .read_to_string(&mut text)
        .context(what)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_though_much_is_left_out() {
        let page = "<ListBucketResult><Contents><Key>grid%20one/17.cpr</Key></Contents><Contents><Key>grid%20one/README\
                    </Key></Contents><NextContinuationToken>a&amp;lt;=</NextContinuationToken></ListBucketResult>";
        let keys: Vec<&str> = elements(page, "Key").collect();
        assert_eq!(keys, ["grid%20one/17.cpr", "grid%20one/README"]);
        assert_eq!(
            elements(page, "NextContinuationToken").next().map(unescaped),
            Some("a&lt;=".to_string())
        );
        assert_eq!(elements("<Key>cut", "Key").next(), None);
    }
}

//! SeaweedFS, which speaks S3.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::server::{Kind, Launch, Server, common_methods};
use crate::{Unavailable, http, locate};

const SERVICE: &str = "s3";
const ACCESS_KEY: &str = "flames";
const SECRET_KEY: &str = "flames-test-secret";

/// A bucket is a collection of volumes, and by default the first write to one makes seven. With one each, many tests with a bucket of
/// their own find room.
const MASTER_SETTINGS: &str = "[master.volume_growth]\ncopy_1 = 1\ncopy_2 = 1\ncopy_3 = 1\ncopy_other = 1\n";

/// Where S3 is and how to sign in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Access {
    /// `http://127.0.0.1:port`; buckets are the first part of the path.
    pub endpoint: String,
    /// The access key.
    pub access_key: String,
    /// The secret key.
    pub secret_key: String,
}

impl S3Access {
    /// From `http://ACCESSKEY:SECRET@127.0.0.1:PORT`.
    pub(crate) fn from_url(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (keys, address) = rest.rsplit_once('@')?;
        let (access_key, secret_key) = keys.split_once(':')?;
        Some(Self {
            endpoint: format!("{scheme}://{}", address.trim_end_matches('/')),
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
        })
    }

    /// As one text, the form of `FLAMES_TEST_S3`.
    #[must_use]
    pub fn url(&self) -> String {
        let (scheme, address) = self.endpoint.split_once("://").unwrap_or(("http", &self.endpoint));
        format!("{scheme}://{}:{}@{address}", self.access_key, self.secret_key)
    }

    /// The same through another address, that of a proxy.
    #[must_use]
    pub fn through(&self, address: SocketAddr) -> Self {
        Self { endpoint: format!("http://{address}"), ..self.clone() }
    }
}

/// A SeaweedFS of its own: master, one volume server, filer and S3 in one process, without buckets.
#[derive(Debug)]
pub struct SeaweedFs {
    server: Server,
}

common_methods!(SeaweedFs);

impl SeaweedFs {
    /// Starts it with its data below `folder`.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(folder: impl AsRef<Path>) -> Result<Self, Unavailable> {
        let program = program()?;
        let kind = Kind { service: SERVICE, ports: 8, end_by: Signal::KILL, litter };
        let server = Server::start(kind, folder.as_ref(), |folder, ports| prepare(&program, folder, ports))?;
        Ok(Self { server })
    }

    /// Where its program is, when it is installed; starts nothing.
    ///
    /// # Errors
    /// When it is not.
    pub fn find() -> Result<PathBuf, Unavailable> {
        program()
    }

    /// The version of the program installed (`4.48`).
    ///
    /// # Errors
    /// When it is not installed.
    pub fn version() -> Result<String, Unavailable> {
        locate::version(SERVICE, &program()?, "version")
    }

    /// `http://ACCESSKEY:SECRET@127.0.0.1:port`.
    #[must_use]
    pub fn url(&self) -> String {
        self.access().url()
    }

    /// Where it is and how to sign in.
    #[must_use]
    pub fn access(&self) -> S3Access {
        S3Access {
            endpoint: format!("http://{}", self.address()),
            access_key: ACCESS_KEY.to_owned(),
            secret_key: SECRET_KEY.to_owned(),
        }
    }
}

fn program() -> Result<PathBuf, Unavailable> {
    locate::program(SERVICE, &["FLAMES_TEST_SEAWEEDFS_PROGRAM"], "weed")
}

/// Its parts talk to each other through these sockets, whose place is written in its source (`/tmp/seaweedfs-…`).
fn litter(ports: &[u16]) -> Vec<PathBuf> {
    let names =
        ["s3-", "s3-grpc-", "master-", "master-grpc-", "volume-", "volume-grpc-", "filer-", "filer-grpc-"];
    let path = |(name, port)| PathBuf::from(format!("/tmp/seaweedfs-{name}{port}.sock"));
    names.iter().zip(ports).map(path).collect()
}

fn prepare(program: &Path, folder: &Path, ports: &[u16]) -> Result<Launch, String> {
    let &[s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc] = ports else {
        return Err("it needs eight ports".to_owned());
    };
    let data = folder.join("data");
    let identities = format!(
        r#"{{"identities":[{{"name":"flames","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}],"actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
    );
    let identity_file = folder.join("s3.json");
    std::fs::create_dir(&data)
        .and_then(|()| std::fs::write(&identity_file, identities))
        .and_then(|()| std::fs::write(folder.join("master.toml"), MASTER_SETTINGS))
        .map_err(|error| format!("cannot prepare {}: {error}", folder.display()))?;
    let text = |name: &str, value: &Path| {
        let mut argument = OsString::from(name);
        argument.push(value);
        argument
    };
    let mut arguments: Vec<OsString> =
        vec!["server".into(), text("-dir=", &data), text("-s3.config=", &identity_file)];
    let own = [
        "-ip=127.0.0.1".to_owned(),
        "-ip.bind=127.0.0.1".to_owned(),
        "-s3".to_owned(),
        format!("-s3.port={s3}"),
        format!("-s3.port.grpc={s3_grpc}"),
        "-s3.port.iceberg=0".to_owned(),
        "-s3.port.lance=0".to_owned(),
        format!("-master.port={master}"),
        format!("-master.port.grpc={master_grpc}"),
        format!("-volume.port={volume}"),
        format!("-volume.port.grpc={volume_grpc}"),
        format!("-filer.port={filer}"),
        format!("-filer.port.grpc={filer_grpc}"),
        "-volume.max=400".to_owned(),
        "-master.volumeSizeLimitMB=64".to_owned(),
        // The only master need not wait ten seconds for others before it leads again after a restart.
        "-master.electionTimeout=1s".to_owned(),
        "-master.heartbeatInterval=100ms".to_owned(),
        // A test run has nothing to report to anybody.
        "-master.telemetry=false".to_owned(),
    ];
    arguments.extend(own.into_iter().map(OsString::from));
    Ok(Launch {
        program: program.to_owned(),
        arguments,
        user: None,
        is_ready: Box::new(move || {
            // Through the filer onto a volume and back: S3 is a view of the same.
            http::request(filer, "PUT", "/flames-is-it-ready", "yes")?;
            http::request(filer, "DELETE", "/flames-is-it-ready", "")?;
            http::request(s3, "GET", "/status", "").map(drop)
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_form_is_read_back_as_it_was_written() {
        let access = S3Access::from_url("http://key:sec-ret@127.0.0.1:9000/").unwrap();
        assert_eq!(access.endpoint, "http://127.0.0.1:9000");
        assert_eq!((access.access_key.as_str(), access.secret_key.as_str()), ("key", "sec-ret"));
        assert_eq!(access.url(), "http://key:sec-ret@127.0.0.1:9000");
        let proxied = access.through(SocketAddr::from(([127, 0, 0, 1], 7)));
        assert_eq!(proxied.url(), "http://key:sec-ret@127.0.0.1:7");
        assert_eq!(S3Access::from_url("http://127.0.0.1:9000"), None);
    }
}

//! How servers and controllers on different machines find and prove each other.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use flames_model::VmName;

use super::keys::Section;
use super::problem::Problem;
use super::{Settings, Source};

/// The port of the host API when an address names none.
const PORT: u16 = 7071;
/// Where Linux distributions keep the authorities that a machine trusts.
const AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

fn wrong(setting: &str, sentence: impl Into<String>) -> Problem {
    Problem::new(Section::Host, setting, sentence)
}

/// Where a server is called by controllers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostListenConfig {
    pub(crate) address: SocketAddr,
    /// Certificate and key; none: without TLS.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    /// A join token that always holds.
    pub(crate) join_token: Option<String>,
}

impl HostListenConfig {
    pub(crate) fn of(settings: &Settings) -> Result<Self, Problem> {
        let text = settings.text("host_listen").unwrap_or_default();
        let address = match text.parse::<u16>() {
            Ok(port) => SocketAddr::from(([127, 0, 0, 1], port)),
            Err(_) => text.parse().map_err(|_| {
                wrong(
                    "host_listen",
                    format!("`{text}` is no address: write 0.0.0.0:{PORT}, [::]:{PORT} or a port alone."),
                )
            })?,
        };
        let tls = match (settings.path("host_certificate"), settings.path("host_key")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(wrong("host_key", "it is missing, and `host_certificate` needs it: give both."));
            }
            (None, Some(_)) => {
                return Err(wrong("host_certificate", "it is missing, and `host_key` is given: give both."));
            }
        };
        if tls.is_none() && !address.ip().is_loopback() && !settings.switch("host_plaintext").unwrap_or(false)
        {
            let sentence = "others can reach this address, and without TLS they could read the secrets of VMs on their way: give \
                 `host_certificate` and `host_key`, or listen on 127.0.0.1; on a network that nobody else is on, set `host_plaintext` to true.";
            return Err(wrong("host_listen", sentence));
        }
        Ok(Self { address, tls, join_token: join_token(settings)? })
    }
}

/// The servers of a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServersConfig {
    pub(crate) servers: Vec<ServerUrl>,
    /// The file of the authorities that are trusted; there is one when a server speaks TLS.
    pub(crate) authorities: Option<PathBuf>,
    pub(crate) join_token: Option<String>,
}

/// Where one server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerUrl {
    /// As it was written.
    pub(crate) url: String,
    /// `host:port`.
    pub(crate) address: String,
    pub(crate) is_tls: bool,
}

impl ServersConfig {
    pub(crate) fn of(settings: &Settings) -> Result<Self, Problem> {
        let is_open = settings.switch("host_plaintext").unwrap_or(false);
        let urls = settings.list("server");
        if urls.is_empty() {
            return Err(wrong(
                "server",
                "it is missing: say where the servers are, for instance --server https://flames-1.example.org:7071.",
            ));
        }
        let servers = urls.iter().map(|url| ServerUrl::read(url, is_open)).collect::<Result<Vec<_>, _>>()?;
        let authorities = match settings.path("server_ca") {
            Some(path) => Some(path),
            None => AUTHORITIES.iter().map(PathBuf::from).find(|path| path.is_file()),
        };
        if authorities.is_none() && servers.iter().any(|server| server.is_tls) {
            return Err(wrong(
                "server_ca",
                "it is missing, and this machine has no list of authorities: name the file with the certificate of the servers' authority.",
            ));
        }
        Ok(Self { servers, authorities, join_token: join_token(settings)? })
    }
}

impl ServerUrl {
    fn read(url: &str, is_open: bool) -> Result<Self, Problem> {
        let refuse = || {
            wrong(
                "server",
                format!(
                    "`{url}` is no address of a server: write https://HOST:PORT or http://127.0.0.1:PORT."
                ),
            )
        };
        let (scheme, rest) = url.trim().split_once("://").ok_or_else(refuse)?;
        let is_tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(refuse()),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let authority: http::uri::Authority = authority.parse().map_err(|_| refuse())?;
        let host = authority.host();
        if authority.as_str().contains('@') || host.is_empty() {
            return Err(refuse());
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let is_loopback =
            bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if !is_tls && !is_loopback && !is_open {
            return Err(wrong(
                "server",
                format!(
                    "`{url}` is another machine, and without TLS others could read the secrets of VMs on their way: write https://, or, on a \
                     network that nobody else is on, set `host_plaintext` to true."
                ),
            ));
        }
        let address = format!("{host}:{}", authority.port_u16().unwrap_or(PORT));
        Ok(Self { url: url.trim().to_owned(), address, is_tls })
    }
}

fn join_token(settings: &Settings) -> Result<Option<String>, Problem> {
    let Some(token) = settings.text("join_token") else { return Ok(None) };
    let token = token.trim();
    if token.len() < 16 || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong(
            "join_token",
            "it is no token: 16 printable characters at least, without spaces. `flames controllers token create` makes one.",
        ));
    }
    Ok(Some(token.to_owned()))
}

/// The name of a host's controller: the one that was chosen, else the machine's own.
pub(crate) fn host_name(settings: &Settings, chosen: &VmName) -> Result<VmName, Problem> {
    if settings.source("name") != Source::Default {
        return Ok(chosen.clone());
    }
    let node = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
    let name = node.split('.').next().unwrap_or_default();
    VmName::new(name).map_err(|_| {
        wrong(
            "name",
            format!("this machine is called `{node}`, which no controller can be: give another with --name."),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_another_machine_is_spoken_to_over_tls() {
        let read = |url: &str| ServerUrl::read(url, false);
        let told = read("https://flames.example.org").unwrap();
        assert_eq!((told.address.as_str(), told.is_tls), ("flames.example.org:7071", true));
        assert_eq!(read("http://[::1]:9/").unwrap().address, "[::1]:9");
        assert!(!read("http://localhost:9").unwrap().is_tls);
        assert!(read("http://10.0.0.1:9").unwrap_err().problem.contains("host_plaintext"));
        assert!(ServerUrl::read("http://10.0.0.1:9", true).is_ok());
        for url in ["10.0.0.1:9", "ftp://a", "https://", "https://u@h", "https://a b"] {
            assert!(read(url).is_err(), "{url}");
        }
    }
}

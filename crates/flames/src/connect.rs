//! Finding the API.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flames_client::{Client, ClientConfig, Mutation};

use crate::args::Global;
use crate::data::{self, DataFolder};
use crate::exit::{Failure, UNREACHABLE};

/// How long one request may take, waits apart.
const REQUEST: Duration = Duration::from_secs(30);
/// The longest token that is read from a file.
const LONGEST_TOKEN: u64 = 4_096;

/// A way to the API.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) client: Client,
    /// Where it is, for people.
    pub(crate) address: String,
    /// The address of its HTTP pages, when there is one.
    pub(crate) pages: Option<String>,
    /// Keeps the folder of a socket with a long path open.
    _folder: Option<File>,
}

/// The data folder that is meant.
pub(crate) fn data_folder(global: &Global) -> Result<DataFolder, Failure> {
    let named = match &global.data {
        Some(data) => Some(data.clone()),
        None => crate::config::data_of_file(global)?,
    };
    named.or_else(data::default_path).map(DataFolder::at).ok_or_else(|| {
        Failure::usage("Neither HOME nor XDG_DATA_HOME says where data is kept.")
            .advise("Name a folder with --data or FLAMES_DATA.")
    })
}

/// Whether a `flames up` serves from this folder.
pub(crate) fn is_up(folder: &DataFolder) -> bool {
    let api = folder.api().ok().flatten();
    api.is_some_and(|api| Path::new("/proc").join(api.pid.to_string()).exists())
}

/// The way to the API that is meant: `--api`, else what the data folder says. Nothing is sent yet.
pub(crate) fn find(global: &Global) -> Result<Api, Failure> {
    if let Some(address) = &global.api {
        return named(global, address);
    }
    let folder = data_folder(global)?;
    let shown = folder.path().display().to_string();
    let api = folder
        .api()
        .map_err(|error| Failure::io(format!("What {shown} says about the API cannot be read"), &error))?
        .ok_or_else(|| {
            Failure::new(UNREACHABLE, format!("No `flames up` works in {shown}.")).advise(
                "Start it with `flames up`, or name another folder with --data, or a server with FLAMES_API.",
            )
        })?;
    let token = match token(global)? {
        Some(token) => token,
        None => folder.token().map_err(|error| Failure::io("The token cannot be read", &error))?,
    };
    // One socket file cannot lead out of the folder.
    let name = Path::new(&api.socket).file_name().unwrap_or("api.sock".as_ref()).to_owned();
    let pages = Some(format!("http://{}", api.address));
    if folder.join(&name).exists() {
        let (path, held) = data::socket_address(&folder.join(&name))
            .map_err(|error| Failure::io("The API's socket cannot be used", &error))?;
        let client = Client::unix(path, config(Some(token)));
        return Ok(Api {
            client,
            address: format!("unix:{}", folder.join(&name).display()),
            pages,
            _folder: held,
        });
    }
    let client = Client::tcp(&api.address.to_string(), config(Some(token)))?;
    Ok(Api { client, address: format!("http://{}", api.address), pages, _folder: None })
}

fn named(global: &Global, address: &str) -> Result<Api, Failure> {
    let mut token = token(global)?;
    if token.is_none() {
        // A server of this machine, named by its address, has its token in the data folder.
        token = data_folder(global).ok().and_then(|folder| folder.token().ok());
    }
    if let Some(path) = address.strip_prefix("unix:") {
        let (path, held) = data::socket_address(&PathBuf::from(path))
            .map_err(|error| Failure::io("The API's socket cannot be used", &error))?;
        let client = Client::unix(path, config(token));
        return Ok(Api { client, address: address.to_owned(), pages: None, _folder: held });
    }
    if address.starts_with("https://") {
        return Err(Failure::usage("This client speaks no TLS.")
            .advise("Name the server's http:// address on this machine, or its unix socket."));
    }
    let bare = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
    let client = Client::tcp(bare, config(token))
        .map_err(|_| Failure::usage(format!("`{address}` is no address: http://HOST:PORT or unix:PATH.")))?;
    Ok(Api {
        client,
        address: format!("http://{bare}"),
        pages: Some(format!("http://{bare}")),
        _folder: None,
    })
}

fn token(global: &Global) -> Result<Option<String>, Failure> {
    if let Some(token) = &global.token {
        return Ok(Some(token.trim().to_owned()));
    }
    let Some(path) = &global.token_file else { return Ok(None) };
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST_TOKEN).read_to_string(&mut text))
        .map_err(|error| Failure::io(format!("The token file {} cannot be read", path.display()), &error))?;
    Ok(Some(text.trim().to_owned()))
}

fn config(token: Option<String>) -> ClientConfig {
    ClientConfig { token, timeout: REQUEST, ..ClientConfig::default() }
}

/// A change that is carried out at most once, however often it is sent.
pub(crate) fn once() -> Result<Mutation, Failure> {
    Ok(Mutation::once(hex::encode(data::random_bytes()?)))
}

/// Sends a change again, under the same key, when its answer was lost.
pub(crate) async fn surely<T>(
    mut send: impl AsyncFnMut() -> flames_error::Result<T>,
) -> flames_error::Result<T> {
    const ATTEMPTS: u32 = 4;
    let mut wait = Duration::from_millis(200);
    for _ in 1..ATTEMPTS {
        match send().await {
            Err(error) if error.is_retryable() && error.kind() != flames_error::ErrorKind::Exhausted => {
                // Nobody listens: the server is not there, which time does not mend.
                if error.kind() == flames_error::ErrorKind::Unavailable && error.code().is_none() {
                    return Err(error);
                }
                tokio::time::sleep(error.retry_after().unwrap_or(wait).min(Duration::from_secs(5))).await;
                wait *= 2;
            }
            other => return other,
        }
    }
    send().await
}

//! Output, files and processes of a guest.

use bytes::Bytes;
use flames_error::{Error, ErrorKind, Result};
use flames_wire::{
    ConsoleQuery, DirectoryListing, FileInfo, FileList, FileMove, FilePath, FileRemove, FileStat, FileWrite,
    LogChunk, LogQuery, MakeDirectory, ProcessList, SignalProcess,
};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http::Method;

use crate::body::{bytes_of, lines_of, streaming};
use crate::client::{Client, segment};

/// Bytes as they come. An error ends them.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

fn vm_path(vm: &str, rest: &str) -> String {
    format!("/v1/vms/{}{rest}", segment(vm))
}

impl Client {
    /// The workload's output, both streams mixed as they came. Errors: `NotFound`; `Conflict` when it never ran; `Unavailable`.
    pub async fn logs(&self, vm: &str, query: &LogQuery) -> Result<ByteStream> {
        const OPERATION: &str = "client.logs";
        let call = self.call(OPERATION, Method::GET, vm_path(vm, "/logs")).query(query)?;
        let response = call.accept("text/plain").send().await?;
        Ok(bytes_of(OPERATION, response.into_body()).boxed())
    }

    /// The workload's output in pieces that say which stream they are of. Errors: as [`Client::logs`].
    pub async fn log_chunks(
        &self,
        vm: &str,
        query: &LogQuery,
    ) -> Result<BoxStream<'static, Result<LogChunk>>> {
        const OPERATION: &str = "client.log_chunks";
        let call = self.call(OPERATION, Method::GET, vm_path(vm, "/logs")).query(query)?;
        let response = call.accept("application/x-ndjson").send().await?;
        let chunks = lines_of(OPERATION, response.into_body()).map(|line| {
            serde_json::from_str(&line?).map_err(|error| {
                Error::new(ErrorKind::Corrupt, OPERATION, "a piece of output cannot be read")
                    .with_source(error)
            })
        });
        Ok(chunks.boxed())
    }

    /// The machine's serial console. Errors: as [`Client::logs`].
    pub async fn console(&self, vm: &str, follow: bool) -> Result<ByteStream> {
        const OPERATION: &str = "client.console";
        let call =
            self.call(OPERATION, Method::GET, vm_path(vm, "/console")).query(&ConsoleQuery { follow })?;
        Ok(bytes_of(OPERATION, call.send().await?.into_body()).boxed())
    }

    /// A file's content. Errors: `NotFound`; `Conflict` when the VM does not run; what the guest says; `Unavailable`.
    pub async fn read_file(&self, vm: &str, path: &str) -> Result<ByteStream> {
        const OPERATION: &str = "client.read_file";
        let query = FilePath { path: path.to_owned() };
        let call = self.call(OPERATION, Method::GET, vm_path(vm, "/files")).query(&query)?;
        Ok(bytes_of(OPERATION, call.send().await?.into_body()).boxed())
    }

    /// Writes a file; it is there whole or not at all. Errors: as [`Client::read_file`].
    pub async fn write_file(
        &self,
        vm: &str,
        write: &FileWrite,
        content: impl Stream<Item = Result<Bytes>> + Send + 'static,
    ) -> Result<FileInfo> {
        let call = self.call("client.write_file", Method::PUT, vm_path(vm, "/files")).query(write)?;
        call.body(streaming(content), "application/octet-stream").read().await
    }

    /// Removes a file or directory. Errors: as [`Client::read_file`].
    pub async fn remove_file(&self, vm: &str, remove: &FileRemove) -> Result<()> {
        self.call("client.remove_file", Method::DELETE, vm_path(vm, "/files")).query(remove)?.finish().await
    }

    /// Lists a directory. Errors: as [`Client::read_file`].
    pub async fn list_files(&self, vm: &str, list: &FileList) -> Result<DirectoryListing> {
        self.call("client.list_files", Method::GET, vm_path(vm, "/files/list")).query(list)?.read().await
    }

    /// What a path is. Errors: as [`Client::read_file`].
    pub async fn stat_file(&self, vm: &str, stat: &FileStat) -> Result<FileInfo> {
        self.call("client.stat_file", Method::GET, vm_path(vm, "/files/stat")).query(stat)?.read().await
    }

    /// Makes a directory. Errors: as [`Client::read_file`].
    pub async fn make_directory(&self, vm: &str, make: &MakeDirectory) -> Result<()> {
        let path = vm_path(vm, "/files/directory");
        self.call("client.make_directory", Method::POST, path).query(make)?.finish().await
    }

    /// Renames within one file system. Errors: as [`Client::read_file`].
    pub async fn rename_file(&self, vm: &str, from: &str, to: &str) -> Result<()> {
        let query = FileMove { from: from.to_owned(), to: to.to_owned() };
        let path = vm_path(vm, "/files/rename");
        self.call("client.rename_file", Method::POST, path).query(&query)?.finish().await
    }

    /// The processes that the guest's agent knows. Errors: `NotFound`; `Conflict`; `Unavailable`.
    pub async fn list_processes(&self, vm: &str) -> Result<ProcessList> {
        self.call("client.list_processes", Method::GET, vm_path(vm, "/processes")).read().await
    }

    /// Sends a signal to a process. Errors: as [`Client::list_processes`], and `NotFound` for the process.
    pub async fn signal_process(&self, vm: &str, process: &str, signal: &SignalProcess) -> Result<()> {
        let path = vm_path(vm, &format!("/processes/{}/signal", segment(process)));
        self.call("client.signal_process", Method::POST, path).json(signal)?.finish().await
    }
}

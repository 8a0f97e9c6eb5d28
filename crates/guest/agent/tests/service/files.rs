//! What the agent promises about files.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use crate::common::*;
use flames_guest_protocol::message::{
    FileKind, ListDirectoryRequest, MakeDirectoryRequest, ReadFileRequest, WriteFileRequest,
};
use flames_guest_protocol::{AgentClient, ErrorKind, Result};

fn at(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

fn write_to(path: &str) -> WriteFileRequest {
    WriteFileRequest { path: path.to_owned(), mode: None, owner: None, overwrite: false }
}

async fn write(client: &AgentClient, request: WriteFileRequest, content: &[u8]) -> Result<()> {
    let mut file = client.write_file(request).await?;
    file.write(content).await?;
    let status = file.finish().await?;
    assert_eq!(status.size, content.len() as u64);
    Ok(())
}

async fn read(client: &AgentClient, path: &str, offset: u64, length: Option<u64>) -> Result<Vec<u8>> {
    let request = ReadFileRequest { path: path.to_owned(), offset, length };
    let (_, mut file) = client.read_file(request).await?;
    let mut content = Vec::new();
    while let Some(piece) = file.next().await? {
        content.extend(piece);
    }
    Ok(content)
}

#[tokio::test]
async fn a_file_is_written_and_read_back_whole_and_in_part() {
    let (client, folder) = (connect(&agent(None)).await, tempfile::tempdir().unwrap());
    let path = at(&folder, "file");
    let content: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
    write(&client, WriteFileRequest { mode: Some(0o640), ..write_to(&path) }, &content).await.unwrap();
    assert!(read(&client, &path, 0, None).await.unwrap() == content);
    assert_eq!(read(&client, &path, 1000, Some(5)).await.unwrap(), content[1000..1005]);
    assert_eq!(read(&client, &path, 9_000_000, None).await.unwrap(), b"");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
}

#[tokio::test]
async fn an_existing_file_is_replaced_only_when_asked_and_keeps_its_owner_and_mode() {
    let (client, folder) = (connect(&agent(None)).await, tempfile::tempdir().unwrap());
    let path = at(&folder, "file");
    std::fs::write(&path, "old").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
    let refused = write(&client, write_to(&path), b"new").await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::AlreadyExists);
    write(&client, WriteFileRequest { overwrite: true, ..write_to(&path) }, b"new").await.unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.uid(), metadata.gid()), (0o600, 12, 34));
    assert_eq!(std::fs::read(&path).unwrap(), b"new");
}

#[tokio::test]
async fn an_abandoned_write_leaves_the_old_file_and_nothing_else() {
    let (client, folder) = (connect(&agent(None)).await, tempfile::tempdir().unwrap());
    let path = at(&folder, "file");
    std::fs::write(&path, "old").unwrap();
    let request = WriteFileRequest { overwrite: true, ..write_to(&path) };
    let mut file = client.write_file(request).await.unwrap();
    file.write(&[1; 500_000]).await.unwrap();
    drop(file);
    let begun = std::time::Instant::now();
    while std::fs::read_dir(folder.path()).unwrap().count() != 1 {
        assert!(begun.elapsed().as_secs() < 10, "the half-written file stayed");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
}

#[tokio::test]
async fn a_write_through_a_link_keeps_the_link() {
    let (client, folder) = (connect(&agent(None)).await, tempfile::tempdir().unwrap());
    std::fs::write(folder.path().join("target"), "old").unwrap();
    symlink("target", folder.path().join("link")).unwrap();
    let request = WriteFileRequest { overwrite: true, ..write_to(&at(&folder, "link")) };
    write(&client, request, b"new").await.unwrap();
    assert_eq!(client.stat(&at(&folder, "link"), false).await.unwrap().link_target.unwrap(), "target");
    assert_eq!(std::fs::read(folder.path().join("target")).unwrap(), b"new");
}

#[tokio::test]
async fn what_is_no_regular_file_is_neither_read_nor_replaced() {
    let (client, folder) = (connect(&agent(None)).await, tempfile::tempdir().unwrap());
    let pipe = at(&folder, "pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        pipe.as_str(),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    assert_eq!(read(&client, &pipe, 0, None).await.unwrap_err().kind, ErrorKind::InvalidInput);
    let request = WriteFileRequest { overwrite: true, ..write_to(&pipe) };
    assert_eq!(write(&client, request, b"x").await.unwrap_err().kind, ErrorKind::InvalidInput);
    assert_eq!(client.stat(&pipe, false).await.unwrap().kind, FileKind::Other);
}

#[tokio::test]
async fn a_directory_is_listed_by_name_in_pages() {
    let (client, folder) = (connect(&agent(None)).await, tempfile::tempdir().unwrap());
    for number in 0..2500 {
        std::fs::write(folder.path().join(format!("file{number:04}")), "x").unwrap();
    }
    let path = folder.path().to_str().unwrap().to_owned();
    let request = ListDirectoryRequest { path, after: None, limit: Some(2000) };
    let (first, more) = client.list_directory(request.clone()).await.unwrap();
    assert_eq!((first.len(), more), (2000, true));
    let after = Some(first.last().unwrap().name.clone());
    let (second, more) = client.list_directory(ListDirectoryRequest { after, ..request }).await.unwrap();
    assert_eq!((second.len(), more), (500, false));
    let names: Vec<_> = first.iter().chain(&second).map(|entry| entry.name.clone()).collect();
    assert!(names.is_sorted());
    assert_eq!(first[0].status.size, 1);
}

#[tokio::test]
async fn directories_are_made_renamed_and_removed() {
    let (client, folder) = (connect(&agent(None)).await, tempfile::tempdir().unwrap());
    let make = |name: &str, parents| MakeDirectoryRequest { path: at(&folder, name), parents, mode: None };
    assert_eq!(client.make_directory(make("a/b", false)).await.unwrap_err().kind, ErrorKind::NotFound);
    client.make_directory(make("a/b", true)).await.unwrap();
    client.make_directory(make("a/b", true)).await.unwrap();
    assert_eq!(client.make_directory(make("a/b", false)).await.unwrap_err().kind, ErrorKind::AlreadyExists);
    client.rename(&at(&folder, "a/b"), &at(&folder, "a/c")).await.unwrap();
    assert_eq!(client.remove(&at(&folder, "a"), false).await.unwrap_err().kind, ErrorKind::Conflict);
    client.remove(&at(&folder, "a"), true).await.unwrap();
    assert_eq!(client.stat(&at(&folder, "a"), false).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn removing_a_tree_does_not_follow_links_out_of_it() {
    let (client, folder) = (connect(&agent(None)).await, tempfile::tempdir().unwrap());
    std::fs::create_dir_all(folder.path().join("tree")).unwrap();
    std::fs::write(folder.path().join("outside"), "x").unwrap();
    symlink(folder.path(), folder.path().join("tree/link")).unwrap();
    client.remove(&at(&folder, "tree"), true).await.unwrap();
    assert!(folder.path().join("outside").exists());
}

#[tokio::test]
async fn impossible_paths_are_invalid() {
    let client = connect(&agent(None)).await;
    for path in ["relative", "", &format!("/{}", "x".repeat(5000)), "/a\0b"] {
        assert_eq!(client.stat(path, false).await.unwrap_err().kind, ErrorKind::InvalidInput, "{path:?}");
    }
    for path in ["/", "//", "/.", "/.."] {
        assert_eq!(client.remove(path, true).await.unwrap_err().kind, ErrorKind::InvalidInput, "{path:?}");
    }
}

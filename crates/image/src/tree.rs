//! A file system as a tree in memory: names, attributes and where the contents lie.
//!
//! Archives are unpacked into this tree and never into a folder of the host, so no path or link of an archive can reach the
//! host at all. Links are followed inside the tree alone, the way a kernel would with the tree as its root; what would leave the root
//! is refused. Owners, device nodes and privileged attributes need no privilege.

use std::collections::{BTreeMap, VecDeque};

use crate::error::{ImageError, Result};
use crate::limits::Limits;
use crate::spool::Content;

/// An index into [`Tree`].
pub(crate) type NodeId = u32;
/// The root directory.
pub(crate) const ROOT: NodeId = 0;
/// The longest name in a directory, in bytes (ext4's and Linux's NAME_MAX).
const NAME_BYTES: usize = 255;
/// Links followed on one path before it counts as a loop (Linux's MAXSYMLINKS).
const LINKS_FOLLOWED: usize = 40;

/// A moment as file systems keep it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// What every node has beside its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission bits with set-uid, set-gid and sticky (`0o7777`).
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: Moment,
    /// Extended attributes by full name (`security.capability`).
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory(BTreeMap<Vec<u8>, Entry>),
    File(Content),
    Symlink(Vec<u8>),
    CharacterDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Socket,
}

/// A name's node, and the layer that last said something about that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) node: NodeId,
    layer: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) attributes: Attributes,
    pub(crate) kind: Kind,
}

/// What a walk does where a directory is missing.
#[derive(Clone, Copy, PartialEq)]
enum Missing {
    Make,
    Stop,
}

#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    layer: u32,
    limits: Limits,
    entries: u64,
    metadata_bytes: u64,
}

impl Tree {
    /// An empty root directory, owned by root, `0755`.
    pub(crate) fn new(limits: Limits) -> Self {
        let root = Node { attributes: implied_directory(), kind: Kind::Directory(BTreeMap::new()) };
        Self { nodes: vec![root], layer: 0, limits, entries: 0, metadata_bytes: 0 }
    }

    /// Says that what follows belongs to the next layer.
    pub(crate) fn begin_layer(&mut self) {
        self.layer += 1;
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    fn children(&self, id: NodeId) -> Option<&BTreeMap<Vec<u8>, Entry>> {
        match &self.nodes[id as usize].kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn children_mut(&mut self, id: NodeId) -> Result<&mut BTreeMap<Vec<u8>, Entry>> {
        match &mut self.nodes[id as usize].kind {
            Kind::Directory(children) => Ok(children),
            _ => Err(ImageError::internal("a walk ended at something that is no directory")),
        }
    }

    /// Counts what one more entry costs.
    fn account(&mut self, bytes: usize) -> Result<()> {
        self.entries += 1;
        self.metadata_bytes += bytes as u64;
        if self.entries > self.limits.entries {
            return Err(ImageError::too_large(format!(
                "the image has more than {} entries",
                self.limits.entries
            )));
        }
        if self.metadata_bytes > self.limits.metadata_bytes {
            return Err(ImageError::too_large(format!(
                "the image's names, links and attributes take more than {} bytes",
                self.limits.metadata_bytes
            )));
        }
        Ok(())
    }

    /// Splits an entry's path into names. Refused: absolute paths, `..`, NUL, names and paths that are too long. The root itself
    /// (`.`, `./`) has no names.
    pub(crate) fn split<'a>(&self, path: &'a [u8]) -> Result<Vec<&'a [u8]>> {
        if path.is_empty() {
            return Err(ImageError::malformed("an entry has an empty path"));
        }
        if path.len() > self.limits.path_bytes {
            return Err(ImageError::too_large(format!(
                "the path is longer than {} bytes",
                self.limits.path_bytes
            )));
        }
        if path[0] == b'/' {
            return Err(ImageError::hostile(
                "the path is absolute; paths of an image are relative to its root",
            ));
        }
        let names: Vec<&[u8]> =
            path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
        for name in &names {
            if *name == b".." {
                return Err(ImageError::hostile("the path holds `..`"));
            }
            if name.contains(&0) {
                return Err(ImageError::malformed("the path holds a NUL byte"));
            }
            if name.len() > NAME_BYTES {
                return Err(ImageError::too_large("a name in the path is longer than 255 bytes"));
            }
        }
        Ok(names)
    }

    /// Walks to the directory that `names` leads to, following links inside the root, and answers the directories passed.
    fn walk(&mut self, names: &[&[u8]], missing: Missing) -> Result<Option<Vec<NodeId>>> {
        let mut passed = vec![ROOT];
        let mut left: VecDeque<Vec<u8>> = names.iter().map(|name| name.to_vec()).collect();
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            let Some(&here) = passed.last() else {
                return Err(ImageError::internal("a walk lost its root"));
            };
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if passed.len() == 1 {
                        return Err(ImageError::hostile(
                            "the path goes through a link that leads out of the image",
                        ));
                    }
                    passed.pop();
                    continue;
                }
                _ => {}
            }
            let layer = self.layer;
            let Some(entry) = self.children_mut(here)?.get_mut(&name) else {
                if missing == Missing::Stop {
                    return Ok(None);
                }
                if passed.len() >= self.limits.depth {
                    return Err(self.too_deep());
                }
                let made = self.add(
                    here,
                    name,
                    Node { attributes: implied_directory(), kind: Kind::Directory(BTreeMap::new()) },
                )?;
                passed.push(made);
                continue;
            };
            let node = entry.node;
            match &self.nodes[node as usize].kind {
                Kind::Directory(_) => {
                    if missing == Missing::Make
                        && let Some(entry) = self.children_mut(here)?.get_mut(&name)
                    {
                        entry.layer = layer;
                    }
                    passed.push(node);
                }
                Kind::Symlink(target) => {
                    links += 1;
                    if links > LINKS_FOLLOWED {
                        return Err(ImageError::hostile("the path goes through a loop of links"));
                    }
                    if target.first() == Some(&b'/') {
                        passed.truncate(1);
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        left.push_front(part.to_vec());
                    }
                }
                _ if missing == Missing::Stop => return Ok(None),
                _ => {
                    return Err(ImageError::malformed(
                        "the path goes through something that is no directory",
                    ));
                }
            }
        }
        Ok(Some(passed))
    }

    fn too_deep(&self) -> ImageError {
        ImageError::too_large(format!("directories lie more than {} deep", self.limits.depth))
    }

    /// Puts a new node under `name`, whatever was there.
    fn add(&mut self, parent: NodeId, name: Vec<u8>, node: Node) -> Result<NodeId> {
        let held: usize = node.attributes.xattrs.iter().map(|(key, value)| key.len() + value.len()).sum();
        let target = match &node.kind {
            Kind::Symlink(target) => target.len(),
            _ => 0,
        };
        self.account(name.len() + held + target)?;
        let id = NodeId::try_from(self.nodes.len()).map_err(|_| ImageError::too_large("too many entries"))?;
        self.nodes.push(node);
        let layer = self.layer;
        self.children_mut(parent)?.insert(name, Entry { node: id, layer });
        Ok(id)
    }

    /// Adds an entry at `path`, making the directories that lead there. A directory over a directory keeps what is in it and takes
    /// the new attributes; anything else replaces what was there.
    pub(crate) fn insert(&mut self, path: &[u8], attributes: Attributes, kind: Kind) -> Result<()> {
        crate::ext4::check_attributes(&attributes)?;
        let names = self.split(path)?;
        let is_directory = matches!(kind, Kind::Directory(_));
        let Some((last, parents)) = names.split_last() else {
            if !is_directory {
                return Err(ImageError::hostile("the image's root would be something else than a directory"));
            }
            self.account(0)?;
            self.nodes[ROOT as usize].attributes = attributes;
            return Ok(());
        };
        let passed = self.walk(parents, Missing::Make)?.unwrap_or_default();
        let &parent = passed.last().unwrap_or(&ROOT);
        if let Kind::Symlink(target) = &kind {
            self.check_link(target, passed.len() - 1)?;
        }
        if is_directory {
            if passed.len() >= self.limits.depth {
                return Err(self.too_deep());
            }
            let layer = self.layer;
            if let Some(entry) = self.children_mut(parent)?.get_mut(*last) {
                entry.layer = layer;
                let node = entry.node;
                if self.children(node).is_some() {
                    self.account(0)?;
                    self.nodes[node as usize].attributes = attributes;
                    return Ok(());
                }
            }
        }
        self.add(parent, last.to_vec(), Node { attributes, kind })?;
        Ok(())
    }

    /// A link's target may name what is not there, and may be absolute (the guest's root is the image), but may not climb out.
    fn check_link(&self, target: &[u8], depth: usize) -> Result<()> {
        if target.is_empty() || target.contains(&0) {
            return Err(ImageError::malformed("the link's target is empty or holds a NUL byte"));
        }
        // A symlink of ext4 holds at most one block less its terminating NUL.
        if target.len() > self.limits.path_bytes.min(4095) {
            return Err(ImageError::too_large("the link's target is longer than 4095 bytes"));
        }
        let mut depth = if target[0] == b'/' { 0 } else { depth };
        for part in target.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." if depth == 0 => return Err(ImageError::hostile("the link leads out of the image")),
                b".." => depth -= 1,
                _ => depth += 1,
            }
        }
        Ok(())
    }

    /// Gives the node at `target` one more name. The target is a path from the image's root and must be there already.
    pub(crate) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let named = |error: ImageError| match error.kind {
            crate::ImageErrorKind::Hostile => {
                ImageError::hostile(format!("its link target: {}", error.message))
            }
            _ => error,
        };
        let target_names = self.split(target).map_err(named)?;
        let missing = || ImageError::malformed("the hard link's target is not in the image");
        let (target_last, target_parents) = target_names.split_last().ok_or_else(missing)?;
        let holder = self.walk(target_parents, Missing::Stop).map_err(named)?.ok_or_else(missing)?;
        let &holder = holder.last().ok_or_else(missing)?;
        let node =
            self.children(holder).and_then(|children| children.get(*target_last)).ok_or_else(missing)?.node;
        if self.children(node).is_some() {
            return Err(ImageError::hostile("a hard link to a directory"));
        }
        let names = self.split(path)?;
        let (last, parents) =
            names.split_last().ok_or_else(|| ImageError::hostile("the image's root would be a link"))?;
        let passed = self.walk(parents, Missing::Make)?.unwrap_or_default();
        let &parent = passed.last().unwrap_or(&ROOT);
        if let Kind::Symlink(target) = &self.nodes[node as usize].kind {
            self.check_link(&target.clone(), passed.len() - 1)?;
        }
        self.account(last.len())?;
        let layer = self.layer;
        self.children_mut(parent)?.insert(last.to_vec(), Entry { node, layer });
        Ok(())
    }

    /// Takes away what lower layers have at `path`; what this layer put there stays (OCI image specification, "Whiteouts").
    pub(crate) fn white_out(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<()> {
        self.account(0)?;
        if let Some(passed) = self.walk(parents, Missing::Stop)?
            && let Some(&parent) = passed.last()
            && let Some(&entry) = self.children(parent).and_then(|children| children.get(name))
            && !self.keep_own(entry)?
        {
            self.children_mut(parent)?.remove(name);
        }
        Ok(())
    }

    /// Takes away what lower layers have in the directory at `names` (OCI image specification, "Opaque Whiteout").
    pub(crate) fn make_opaque(&mut self, names: &[&[u8]]) -> Result<()> {
        self.account(0)?;
        if let Some(passed) = self.walk(names, Missing::Stop)?
            && let Some(&directory) = passed.last()
        {
            self.drop_lower(directory)?;
        }
        Ok(())
    }

    fn drop_lower(&mut self, directory: NodeId) -> Result<()> {
        let Some(children) = self.children(directory) else { return Ok(()) };
        let entries: Vec<(Vec<u8>, Entry)> =
            children.iter().map(|(name, entry)| (name.clone(), *entry)).collect();
        for (name, entry) in entries {
            if !self.keep_own(entry)? {
                self.children_mut(directory)?.remove(&name);
            }
        }
        Ok(())
    }

    /// Whether this layer put the entry there; what lower layers have below it is taken away.
    fn keep_own(&mut self, entry: Entry) -> Result<bool> {
        if entry.layer < self.layer {
            return Ok(false);
        }
        self.drop_lower(entry.node)?;
        Ok(true)
    }

    /// What is at `path`, without following a link at its end.
    #[cfg(test)]
    pub(crate) fn find(&mut self, path: &str) -> Option<(NodeId, &Node)> {
        let names: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
        let (last, parents) = names.split_last()?;
        let parent = *self.walk(parents, Missing::Stop).ok()??.last()?;
        let id = self.children(parent)?.get(*last)?.node;
        Some((id, self.node(id)))
    }
}

/// What a directory gets that no entry speaks of.
fn implied_directory() -> Attributes {
    Attributes { mode: 0o755, ..Attributes::default() }
}

#[cfg(test)]
mod tests;

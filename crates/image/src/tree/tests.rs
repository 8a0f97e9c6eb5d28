//! What a tree takes from an archive, and what it refuses.

use super::*;
use crate::ImageErrorKind;

fn directory() -> Kind {
    Kind::Directory(BTreeMap::new())
}

fn file() -> Kind {
    Kind::File(Content::default())
}

fn put(tree: &mut Tree, path: &str, kind: Kind) -> Result<()> {
    tree.insert(path.as_bytes(), Attributes { mode: 0o644, ..Attributes::default() }, kind)
}

#[test]
fn a_file_through_a_link_lands_where_the_guest_would_see_it() {
    let mut tree = Tree::new(Limits::default());
    put(&mut tree, "usr/bin", directory()).unwrap();
    put(&mut tree, "bin", Kind::Symlink(b"/usr/bin".to_vec())).unwrap();
    put(&mut tree, "bin/tool", file()).unwrap();
    assert!(matches!(tree.find("usr/bin/tool").unwrap().1.kind, Kind::File(_)));
    assert!(matches!(tree.find("bin").unwrap().1.kind, Kind::Symlink(_)));
}

#[test]
fn paths_and_links_that_lead_out_are_refused() {
    let mut tree = Tree::new(Limits::default());
    for path in ["/etc/passwd", "../x", "a/../../x", "a/.."] {
        assert_eq!(put(&mut tree, path, file()).unwrap_err().kind, ImageErrorKind::Hostile, "{path}");
    }
    for target in ["..", "../../etc", "/../etc", "a/../../.."] {
        let error = put(&mut tree, "link", Kind::Symlink(target.into())).unwrap_err();
        assert_eq!(error.kind, ImageErrorKind::Hostile, "{target}");
    }
    for target in ["/etc/passwd", "../x"] {
        assert_eq!(tree.hard_link(b"hard", target.as_bytes()).unwrap_err().kind, ImageErrorKind::Hostile);
    }
}

#[test]
fn a_link_that_is_sound_where_it_lies_cannot_be_used_to_climb_out_from_elsewhere() {
    let mut tree = Tree::new(Limits::default());
    put(&mut tree, "a/b", directory()).unwrap();
    put(&mut tree, "a/b/up", Kind::Symlink(b"../..".to_vec())).unwrap();
    assert_eq!(tree.hard_link(b"up", b"a/b/up").unwrap_err().kind, ImageErrorKind::Hostile);
    put(&mut tree, "a/b/up/fine", file()).unwrap();
    assert!(tree.find("fine").is_some());
    put(&mut tree, "deep", Kind::Symlink(b"a/b/up".to_vec())).unwrap();
    put(&mut tree, "a/b/out", Kind::Symlink(b"up/../x".to_vec())).unwrap();
    assert_eq!(put(&mut tree, "a/b/out/y", file()).unwrap_err().kind, ImageErrorKind::Hostile);
}

#[test]
fn loops_depth_and_counts_are_bounded() {
    let mut tree = Tree::new(Limits { entries: 20, depth: 8, ..Limits::default() });
    put(&mut tree, "x", Kind::Symlink(b"y".to_vec())).unwrap();
    put(&mut tree, "y", Kind::Symlink(b"x".to_vec())).unwrap();
    assert_eq!(put(&mut tree, "x/file", file()).unwrap_err().kind, ImageErrorKind::Hostile);
    assert_eq!(put(&mut tree, "1/2/3/4/5/6/7/8/9", file()).unwrap_err().kind, ImageErrorKind::TooLarge);
    let error = (0..20).find_map(|n| put(&mut tree, &format!("f{n}"), file()).err()).unwrap();
    assert!(error.message.contains("20 entries"), "{error}");
}

#[test]
fn whiteouts_and_opaque_marks_touch_only_lower_layers_in_any_order() {
    let mut tree = Tree::new(Limits::default());
    for path in ["d/low", "d/sub/low", "gone/low", "kept/low"] {
        put(&mut tree, path, file()).unwrap();
    }
    tree.begin_layer();
    put(&mut tree, "d/sub/new", file()).unwrap();
    tree.make_opaque(&[b"d"]).unwrap();
    put(&mut tree, "d/after", file()).unwrap();
    put(&mut tree, "gone/new", file()).unwrap();
    tree.white_out(&[], b"gone").unwrap();
    tree.white_out(&[b"nowhere"], b"x").unwrap();
    for path in ["d/sub/new", "d/after", "gone/new", "kept/low"] {
        assert!(tree.find(path).is_some(), "{path}");
    }
    for path in ["d/low", "d/sub/low", "gone/low"] {
        assert!(tree.find(path).is_none(), "{path}");
    }
}

#[test]
fn a_directory_entry_keeps_what_is_inside_and_anything_else_replaces_it() {
    let mut tree = Tree::new(Limits::default());
    put(&mut tree, "d/f", file()).unwrap();
    put(&mut tree, "d", directory()).unwrap();
    assert_eq!(tree.find("d").unwrap().1.attributes.mode, 0o644);
    assert!(tree.find("d/f").is_some());
    put(&mut tree, "d", file()).unwrap();
    assert!(tree.find("d/f").is_none());
    assert_eq!(put(&mut tree, "d/f", file()).unwrap_err().kind, ImageErrorKind::Malformed);
    put(&mut tree, "link", Kind::Symlink(b"elsewhere".to_vec())).unwrap();
    put(&mut tree, "link", directory()).unwrap();
    assert!(matches!(tree.find("link").unwrap().1.kind, Kind::Directory(_)));
}

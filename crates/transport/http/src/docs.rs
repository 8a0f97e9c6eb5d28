//! The pages that explain the error codes, as part of the binary.

macro_rules! pages {
    ($($code:literal),* $(,)?) => {
        const PAGES: &[(&str, &str)] =
            &[$(($code, include_str!(concat!("../../../../docs/errors/", $code, ".md")))),*];
    };
}

pages!(
    "INVALID_FIELD",
    "INVALID_REQUEST",
    "VM_NOT_FOUND",
    "VM_NAME_TAKEN",
    "VM_DELETED",
    "VM_NOT_RUNNING",
    "VM_NOT_PAUSABLE",
    "NETWORK_NOT_CHANGEABLE",
    "IMAGE_NOT_FOUND",
    "IMAGE_WRONG_KIND",
    "IMAGE_IN_USE",
    "IMAGE_REFUSED",
    "SNAPSHOT_NOT_FOUND",
    "SNAPSHOT_NAME_TAKEN",
    "SNAPSHOT_IN_PROGRESS",
    "SNAPSHOT_NOT_READY",
    "SNAPSHOT_IN_USE",
    "SNAPSHOT_BASE_UNUSABLE",
    "CONTROLLER_NOT_FOUND",
    "CONTROLLER_IN_USE",
    "ADDRESS_BLOCK_IN_USE",
    "CONTROLLER_SUPERSEDED",
    "CONTROLLER_NAME_TAKEN",
    "BLOB_NOT_FOUND",
    "JOIN_TOKEN_NOT_FOUND",
    "HOST_UNREACHABLE",
    "GENERATION_MISMATCH",
    "IDEMPOTENCY_KEY_REUSED",
    "CONTENDED",
    "ROUTE_NOT_FOUND",
    "METHOD_NOT_ALLOWED",
    "UNAUTHENTICATED",
    "FORBIDDEN",
    "BODY_TOO_LARGE",
    "REQUEST_TIMEOUT",
    "UNSUPPORTED_MEDIA_TYPE",
    "NOT_SUPPORTED",
    "EXHAUSTED",
    "UNAVAILABLE",
    "INTERNAL",
    "PROCESS_NOT_FOUND",
    "PROCESS_NOT_STARTED",
    "GUEST_FILE",
    "IMAGE_MALFORMED",
    "IMAGE_TOO_LARGE",
    "IMAGE_DIGEST_MISMATCH",
    "IMAGE_UNSUPPORTED",
    "NOT_A_KERNEL",
    "IMAGE_CONVERSION_TIMED_OUT",
    "IMAGE_NO_SPACE",
);

/// The page of an error code, as Markdown.
pub fn error_page(code: &str) -> Option<&'static str> {
    PAGES.iter().find(|(known, _)| *known == code).map(|(_, page)| *page)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flames_error::Error;
    use flames_image::{ImageError, ImageErrorKind};
    use flames_service::codes;

    use super::*;

    /// The public codes of `flames-image`. The match is there so that a new kind is not forgotten here.
    fn image_codes() -> BTreeSet<&'static str> {
        use ImageErrorKind as Kind;
        let listed = |kind: Kind| match kind {
            Kind::Malformed
            | Kind::Hostile
            | Kind::TooLarge
            | Kind::DigestMismatch
            | Kind::Unsupported
            | Kind::NotAKernel
            | Kind::NotFound
            | Kind::Conflict
            | Kind::MissingProgram
            | Kind::TimedOut
            | Kind::NoSpace
            | Kind::Io
            | Kind::Internal => kind,
        };
        let kinds = [
            Kind::Malformed,
            Kind::Hostile,
            Kind::TooLarge,
            Kind::DigestMismatch,
            Kind::Unsupported,
            Kind::NotAKernel,
            Kind::NotFound,
            Kind::Conflict,
            Kind::MissingProgram,
            Kind::TimedOut,
            Kind::NoSpace,
            Kind::Io,
            Kind::Internal,
        ];
        let errors = kinds.map(|kind| Error::from(ImageError::new(listed(kind), "test")));
        errors.iter().filter_map(Error::code).collect()
    }

    /// Every code that a user can meet.
    fn all_codes() -> BTreeSet<&'static str> {
        codes::ALL.iter().copied().chain(image_codes()).collect()
    }

    #[test]
    fn every_code_has_a_page_that_says_what_it_means_and_what_to_do() {
        assert!(image_codes().len() >= 8);
        for code in all_codes() {
            let page = error_page(code).unwrap_or_else(|| panic!("docs/errors/{code}.md is missing"));
            assert!(page.starts_with(&format!("# {code}\n")), "{code}: the title is another");
            assert!(page.contains("## What to do\n"), "{code}: it does not say what to do");
            assert!(page.lines().count() >= 6, "{code}: too short to help");
        }
    }

    #[test]
    fn no_page_and_no_title_is_left_of_a_code_that_is_gone() {
        let pages: Vec<_> = PAGES.iter().map(|(code, _)| *code).collect();
        let titles: Vec<_> = flames_wire::codes::TITLES.iter().map(|(code, _)| *code).collect();
        assert_eq!(pages, titles);
        assert_eq!(pages.iter().copied().collect::<BTreeSet<_>>(), all_codes());
        assert_eq!(pages.len(), all_codes().len(), "a code stands twice");
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../docs/errors");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(pages.contains(&name.trim_end_matches(".md")), "{name} belongs to no code");
        }
    }
}

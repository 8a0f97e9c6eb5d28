//! Multipart uploads that were begun and not completed. The client library cannot list them, so this asks itself
//! (`ListMultipartUploads` of the S3 API, which the XML API of Google Cloud Storage has too). Azure has none to abort: blocks that
//! were never committed go by themselves after a week.

#[cfg(any(feature = "s3", feature = "gcs"))]
pub(super) use listed::Server;

use flames_error::Result;
use jiff::Timestamp;
use object_store::path::Path;

use super::calls::Calls;

/// How unfinished uploads are found.
#[derive(Debug)]
pub(super) enum Uploads {
    /// The server lists them.
    #[cfg(any(feature = "s3", feature = "gcs"))]
    Listed(Server),
    /// The server removes them itself.
    #[cfg(any(feature = "azure", test))]
    GoByThemselves,
}

impl Uploads {
    /// Path and id of the uploads of ours that were begun before `cutoff`, at most some thousands of them.
    pub(super) async fn begun_before(&self, calls: &Calls, cutoff: Timestamp) -> Result<Vec<(Path, String)>> {
        match self {
            #[cfg(any(feature = "s3", feature = "gcs"))]
            Self::Listed(server) => server.begun_before(calls, cutoff).await,
            #[cfg(any(feature = "azure", test))]
            Self::GoByThemselves => {
                let _ = (calls, cutoff);
                Ok(Vec::new())
            }
        }
    }
}

#[cfg(any(feature = "s3", feature = "gcs"))]
mod listed {
    use flames_clock::ClockExt;
    use flames_error::{Error, ErrorKind, Result};
    use jiff::Timestamp;
    use object_store::client::{HttpClient, HttpRequest, HttpRequestBody};
    use object_store::path::Path;
    use serde::Deserialize;

    use super::super::calls::Calls;

    const OPERATION: &str = "blob.sweep";
    /// The most pages that one sweep looks at; the next one goes on.
    const MAX_PAGES: usize = 10;
    /// The longest page: 1,000 uploads with keys of 1,024 bytes and long ids.
    const MAX_PAGE_BYTES: usize = 8 * 1024 * 1024;

    /// Who signs the request.
    #[derive(Debug)]
    pub(in super::super) enum Signer {
        #[cfg(feature = "s3")]
        S3 { credentials: object_store::aws::AwsCredentialProvider, region: String },
        #[cfg(feature = "gcs")]
        Gcs { credentials: object_store::gcp::GcpCredentialProvider },
    }

    /// A server that lists uploads.
    #[derive(Debug)]
    pub(in super::super) struct Server {
        pub(in super::super) http: HttpClient,
        /// The bucket's URL, without a slash behind it.
        pub(in super::super) bucket_url: String,
        pub(in super::super) signer: Signer,
    }

    /// `ListMultipartUploadsResult` of the S3 API reference.
    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Listing {
        #[serde(default)]
        upload: Vec<Upload>,
        #[serde(default)]
        is_truncated: bool,
        #[serde(default)]
        next_key_marker: String,
        #[serde(default)]
        next_upload_id_marker: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Upload {
        key: String,
        upload_id: String,
        initiated: Timestamp,
    }

    impl Server {
        pub(super) async fn begun_before(
            &self,
            calls: &Calls,
            cutoff: Timestamp,
        ) -> Result<Vec<(Path, String)>> {
            let mut found = Vec::new();
            let (mut key_marker, mut id_marker) = (String::new(), String::new());
            for _ in 0..MAX_PAGES {
                let listing = self.page(calls, &key_marker, &id_marker).await?;
                let prefix = calls.names.all_data();
                for upload in listing.upload {
                    if upload.initiated < cutoff && upload.key.starts_with(&prefix) {
                        found.push((Path::from(upload.key), upload.upload_id));
                    }
                }
                if !listing.is_truncated || listing.next_key_marker.is_empty() {
                    break;
                }
                (key_marker, id_marker) = (listing.next_key_marker, listing.next_upload_id_marker);
            }
            Ok(found)
        }

        async fn page(&self, calls: &Calls, key_marker: &str, id_marker: &str) -> Result<Listing> {
            for attempt in 1.. {
                let asked =
                    calls.clock.timeout(calls.limits.call, self.ask(calls, key_marker, id_marker)).await;
                let error = match asked {
                    Ok(Ok(listing)) => return Ok(listing),
                    Ok(Err(error)) => error,
                    Err(deadline) => calls.place.too_slow(OPERATION, deadline).into_error(OPERATION),
                };
                if !error.is_retryable() || attempt >= calls.limits.attempts {
                    return Err(error);
                }
                calls.pause(attempt).await;
            }
            Err(Error::internal(OPERATION, "the tries ran out"))
        }

        async fn ask(&self, calls: &Calls, key_marker: &str, id_marker: &str) -> Result<Listing> {
            let url = format!(
                "{}?key-marker={}&prefix={}&upload-id-marker={}&uploads=",
                self.bucket_url,
                quoted(key_marker),
                quoted(&calls.names.all_data()),
                quoted(id_marker),
            );
            let internal = |what: &'static str| Error::internal(OPERATION, what);
            let mut request: HttpRequest = http::Request::get(url)
                .body(HttpRequestBody::empty())
                .map_err(|error| internal("the listing of uploads has no URL").with_source(error))?;
            self.sign(calls, &mut request).await?;
            let response = self.http.execute(request).await.map_err(|error| {
                Error::unavailable(OPERATION, "the server does not list its uploads").with_source(error)
            })?;
            let status = response.status();
            let body = response.into_body().bytes().await.map_err(|error| {
                Error::unavailable(OPERATION, "the listing of uploads was cut").with_source(error)
            })?;
            if !status.is_success() {
                let kind = match status.as_u16() {
                    401 | 403 => ErrorKind::PermissionDenied,
                    404 | 405 | 501 => ErrorKind::NotSupported,
                    429 | 500..=599 => ErrorKind::Unavailable,
                    _ => ErrorKind::Internal,
                };
                return Err(Error::new(kind, OPERATION, "the server does not list its uploads")
                    .with_context("status", status));
            }
            if body.len() > MAX_PAGE_BYTES {
                return Err(internal("the listing of uploads is too long"));
            }
            parse(&String::from_utf8_lossy(&body))
        }

        async fn sign(&self, calls: &Calls, request: &mut HttpRequest) -> Result<()> {
            let failed =
                |error: object_store::Error| calls.place.failure(OPERATION, error).into_error(OPERATION);
            match &self.signer {
                #[cfg(feature = "s3")]
                Signer::S3 { credentials, region } => {
                    let credential = credentials.get_credential().await.map_err(failed)?;
                    object_store::aws::AwsAuthorizer::new(&credential, "s3", region)
                        .try_authorize(request, None)
                        .map_err(failed)
                }
                #[cfg(feature = "gcs")]
                Signer::Gcs { credentials } => {
                    let credential = credentials.get_credential().await.map_err(failed)?;
                    let bearer = http::HeaderValue::try_from(format!("Bearer {}", credential.bearer))
                        .map_err(|error| {
                            Error::internal(OPERATION, "the token is no header").with_source(error)
                        })?;
                    request.headers_mut().insert(http::header::AUTHORIZATION, bearer);
                    Ok(())
                }
            }
        }
    }

    fn parse(xml: &str) -> Result<Listing> {
        quick_xml::de::from_str(xml).map_err(|error| {
            Error::internal(OPERATION, "the listing of uploads is not what the S3 API says")
                .with_source(error)
        })
    }

    /// As in RFC 3986: all but unreserved characters as `%XX`.
    fn quoted(text: &str) -> String {
        text.bytes().fold(String::with_capacity(text.len()), |mut quoted, byte| {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
                quoted.push(char::from(byte));
            } else {
                quoted.push_str(&format!("%{byte:02X}"));
            }
            quoted
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_listing_is_read_as_the_s3_api_writes_it() {
            let listing = parse(
                r#"<?xml version="1.0" encoding="UTF-8"?>
<ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Bucket>b</Bucket><KeyMarker/>
<NextKeyMarker>data/k!2</NextKeyMarker><NextUploadIdMarker>two</NextUploadIdMarker><IsTruncated>true</IsTruncated>
<Upload><Key>data/k!1</Key><UploadId>one</UploadId><Initiated>2026-01-02T03:04:05.000Z</Initiated></Upload>
<Upload><Key>data/k!2</Key><UploadId>two</UploadId><Owner><ID>x</ID></Owner><Initiated>2026-01-02T03:04:06.000Z</Initiated></Upload>
</ListMultipartUploadsResult>"#,
            )
            .unwrap();
            assert!(listing.is_truncated);
            assert_eq!((listing.upload.len(), listing.upload[1].upload_id.as_str()), (2, "two"));
            assert_eq!(listing.next_key_marker, "data/k!2");
            let empty = parse(
                "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>",
            );
            assert!(empty.unwrap().upload.is_empty());
        }

        #[test]
        fn markers_are_quoted() {
            assert_eq!(quoted("a/b!c d~e+"), "a%2Fb%21c%20d~e%2B");
        }
    }
}

#[cfg(any(feature = "s3", feature = "gcs"))]
pub(super) use listed::Signer;

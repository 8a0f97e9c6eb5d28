//! Making a bucket.

/// HMAC (RFC 2104) with SHA-256.
fn hmac(key: &[u8], message: &str) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let padded = |pad: u8| block.map(|byte| byte ^ pad);
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().to_vec()
}

/// Makes a bucket: one request, signed as AWS Signature Version 4 says.
pub(crate) fn make_bucket(access: &flames_test_servers::S3Access, bucket: &str) {
    use sha2::{Digest, Sha256};
    use std::io::{Read, Write};
    let host = access.endpoint.strip_prefix("http://").unwrap();
    let second = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let time = flames_model::Timestamp::from_second(i64::try_from(second).unwrap()).unwrap();
    let time = time.to_string().replace(['-', ':'], "");
    let (date, empty) = (&time[..8], hex::encode(Sha256::digest("")));
    let signed = "host;x-amz-content-sha256;x-amz-date";
    let request = format!(
        "PUT\n/{bucket}\n\nhost:{host}\nx-amz-content-sha256:{empty}\nx-amz-date:{time}\n\n{signed}\n{empty}"
    );
    let scope = format!("{date}/us-east-1/s3/aws4_request");
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex::encode(Sha256::digest(request)));
    let first = format!("AWS4{}", access.secret_key).into_bytes();
    let key = [date, "us-east-1", "s3", "aws4_request"].iter().fold(first, |key, part| hmac(&key, part));
    let signature = hex::encode(hmac(&key, &text));
    let credential = format!("{}/{scope}", access.access_key);
    let mut stream = std::net::TcpStream::connect(host).unwrap();
    write!(
        stream,
        "PUT /{bucket} HTTP/1.1\r\nHost: {host}\r\nx-amz-content-sha256: {empty}\r\nx-amz-date: {time}\r\nContent-Length: 0\r\n\
         Authorization: AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={signed}, Signature={signature}\r\n\
         Connection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

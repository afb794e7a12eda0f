//! A model server that costs nothing: reads a request, waits, and answers ten logits.
//!
//! `rustc -O upstream.rs && ./upstream ADDRESS MILLISECONDS`; a thread a connection, no dependency.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

const ANSWER: &str = r#"{"model_name":"m","outputs":[{"name":"logits","shape":[1,10],"datatype":"FP32","data":[0.1,9.5,0.3,-1.25,2.0,0.0,-3.5,1.5,0.75,-0.5]}]}"#;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (address, wait) = match (arguments.next(), arguments.next().map(|text| text.parse())) {
        (Some(address), Some(Ok(wait))) => (address, Duration::from_millis(wait)),
        _ => {
            eprintln!("usage: upstream ADDRESS MILLISECONDS");
            std::process::exit(2);
        }
    };
    let listener = TcpListener::bind(&address).expect("a free address");
    for stream in listener.incoming().flatten() {
        thread::spawn(move || serve(stream, wait));
    }
}

/// Until the client closes or says something that is not HTTP.
fn serve(stream: TcpStream, wait: Duration) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::with_capacity(1 << 16, stream);
    let mut body = Vec::new();
    loop {
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().ok()?;
            }
        }
        body.resize(length, 0);
        reader.read_exact(&mut body).ok()?;
        if !wait.is_zero() {
            thread::sleep(wait);
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: ";
        write!(writer, "{head}{}\r\n\r\n{ANSWER}", ANSWER.len()).ok()?;
    }
}

//! Just enough of the protocol of Redis for an administrator.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use serde_json::{Value, json};

use crate::DEADLINE;

/// A connection of the user `default`, who may do everything.
pub(super) struct Admin {
    stream: BufReader<TcpStream>,
}

impl Admin {
    /// `None` when nobody listens.
    pub(super) fn connect(port: u16) -> Option<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).expect("a socket knows the option");
        Some(Self { stream: BufReader::new(stream) })
    }

    /// Runs a command. `None` when the server ends or refuses it, or does not answer by the deadline.
    pub(super) fn run(&mut self, command: &[&str]) -> Option<Value> {
        let mut request = format!("*{}\r\n", command.len());
        for word in command {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.stream.get_mut().write_all(request.as_bytes()).ok()?;
        self.value()
    }

    fn value(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let (kind, rest) = line.trim_end().split_at_checked(1)?;
        match kind {
            "+" => Some(json!(rest)),
            ":" => Some(json!(rest.parse::<i64>().ok()?)),
            "$" => {
                // A length of -1 is no value.
                let Ok(len) = rest.parse::<usize>() else { return Some(Value::Null) };
                let mut bytes = vec![0; len + 2];
                self.stream.read_exact(&mut bytes).ok()?;
                bytes.truncate(len);
                Some(json!(String::from_utf8_lossy(&bytes)))
            }
            "*" => {
                (0..rest.parse().unwrap_or(0)).map(|_| self.value()).collect::<Option<Vec<Value>>>().map(Value::Array)
            }
            _ => None,
        }
    }
}

//! What the manual for operators says about permissions is what the backplane needs.

use backplane::redis::{RedisConfig, SENTINEL_ACL_COMMANDS, acl_line};

const MANUAL: &str = include_str!("../../docs/redis.md");

/// The lines of the manual that begin like this.
fn lines(beginning: &str) -> Vec<&'static str> {
    MANUAL.lines().filter(|line| line.starts_with(beginning)).collect()
}

#[test]
fn the_rule_for_servers_is_the_one_that_is_needed() {
    let rule = acl_line("evenkeel", &RedisConfig::default().prefix);
    assert_eq!(lines("ACL SETUSER evenkeel on resetkeys ~"), [rule.as_str()], "in docs/redis.md");
}

#[test]
fn the_rule_for_sentinels_is_the_one_that_is_needed() {
    let rule = format!("ACL SETUSER evenkeel on resetkeys resetchannels {SENTINEL_ACL_COMMANDS}");
    assert_eq!(lines("ACL SETUSER evenkeel on resetkeys resetchannels"), [rule.as_str()], "in docs/redis.md");
}

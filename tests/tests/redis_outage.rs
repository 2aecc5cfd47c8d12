//! A Redis that cannot be used is refused, with words that help.

use tests::fleet::node;
use tests::redis::{Server, VOLATILE};

#[tokio::test]
async fn a_redis_that_does_not_allow_what_is_needed_is_refused_with_the_rule_that_helps() {
    let redis = Server::start(VOLATILE);
    redis.admin(&["ACL", "SETUSER", "evenkeel", "-info"]);
    let gateway = node(&redis.config("")).start();
    assert!(gateway.exit_code().await > 0, "it cannot ever work");
    let log = gateway.log();
    assert!(log.contains("ACL SETUSER evenkeel on") && log.contains("+info"), "{log}");
    assert!(!log.contains("not-a-secret"), "no password in the log");
}

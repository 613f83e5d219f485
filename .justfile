# just --justfile .justfile --list

default: verify

fmt:
    cargo fmt --all

lint:
    cargo clippy --workspace --all-targets --locked -- -D warnings

test *args:
    cargo test --workspace --locked {{args}}

# End-to-end tests only: just e2e, or just e2e bonding
e2e case="bonding restart config_errors":
    for target in {{case}}; do MWB_REQUIRE=all cargo test -p mwb-node --locked --test "$target"; done

# The bond to be seen, within a minute
demo:
    cargo run --release --locked -- demo

bench profile="two-path":
    cargo run --release --locked -- bench --profile {{profile}}

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

deny:
    cargo deny --config .deny.toml check bans licenses sources

# What CI runs
verify:
    bash .ci/run

//! What ranks tell each other first: whether they were started for one problem.

use crate::error::Error;
use crate::transport::Transport;
use wgpu_flash_attention::AttentionProblem;

/// Bytes of a greeting. Longer ones are cut, alike on all ranks.
const LENGTH: usize = 2048;

/// Compares version, scheme and problem of all ranks.
pub(crate) fn greet(transport: &mut impl Transport, scheme: &str, problem: &AttentionProblem) -> Result<(), Error> {
    let shape = &problem.shape;
    let dropout = problem.dropout.map(|d| (d.dropout_p.to_bits(), d.philox_seed, d.philox_offset));
    let fields = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("ranks", transport.ranks().to_string()),
        ("scheme", scheme.to_owned()),
        ("element", problem.element.name().to_owned()),
        ("batch", shape.batch.to_string()),
        ("seqlen_q", shape.seqlen_q.to_string()),
        ("seqlen_kv", shape.seqlen_kv.to_string()),
        ("num_heads", shape.num_heads.to_string()),
        ("num_heads_kv", shape.num_heads_kv.to_string()),
        ("head_dim", shape.head_dim.to_string()),
        ("head_dim_v", shape.head_dim_v.to_string()),
        ("softmax_scale", problem.softmax_scale().to_string()),
        ("mask", format!("{:?}", problem.mask)),
        ("dropout", format!("{dropout:?}")),
        ("score modifiers", format!("{:016x}", hash(&format!("{:?}", problem.scores())))),
        ("masks", format!("{:016x}", hash(&format!("{:?}", problem.key_masks())))),
        ("sink", problem.has_sink().to_string()),
        ("the gradient of a bias", problem.has_bias_gradient().to_string()),
    ];
    let text: Vec<String> = fields.iter().map(|(name, value)| format!("{name}\t{value}")).collect();
    let mut own = text.join("\n").into_bytes();
    own.resize(LENGTH, b'\n');
    for (rank, other) in transport.all_gather(&own)?.into_iter().enumerate() {
        let other = String::from_utf8_lossy(&other);
        let lines = other.lines().map(|line| line.split_once('\t').unwrap_or(("", line)));
        for ((name, expected), (found_name, found)) in fields.iter().zip(lines) {
            if (*name, expected.as_str()) != (found_name, found) {
                let (name, expected, found) = (name.to_string(), expected.clone(), found.to_owned());
                return Err(Error::Mismatch { rank, name, found, expected });
            }
        }
    }
    Ok(())
}

/// FNV-1a, 64 bits.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

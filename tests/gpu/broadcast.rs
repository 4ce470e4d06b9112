//! Tiles whose subgroups load K and V together and broadcast them.

use wgpu_flash_attention::{AttentionProblem, AttentionShape, Element, Tiles};

use crate::support::{Library, check, inputs, limited, run, strided};

/// `None` where subgroups have several sizes, or there are none.
fn broadcasting(tile_kv: u32, thread_rows: u32) -> Option<Library> {
    let library = limited(|_| ());
    let capabilities = library.capabilities();
    let size = capabilities.subgroup_min_size;
    if !capabilities.subgroups || capabilities.subgroup_max_size != size {
        println!("skipped: the device has no subgroups of one size");
        return None;
    }
    let tiles = Tiles::broadcasting(2 * size * thread_rows, tile_kv, thread_rows, size);
    Some(library.tiles(tiles, Tiles::new(64, 32, 4, 8)))
}

#[test]
fn every_mask_and_element() {
    let Some(library) = broadcasting(8, 2) else { return };
    for &element in Element::ALL {
        let shape = AttentionShape::new(2, 4, 37, 16).with_num_heads_kv(2).with_seqlen_kv(75).with_head_dim_v(12);
        let problem = AttentionProblem::new(shape).with_element(element);
        for problem in [
            problem.clone(),
            problem.clone().with_causal().with_dropout(0.3, 7),
            problem.clone().with_window(Some(9), Some(4)),
            problem.with_layout(strided(&shape, true)).with_softmax_scale(-0.4),
        ] {
            check(&library, &problem, &inputs(&problem, 1));
        }
    }
}

#[test]
fn every_width() {
    let Some(library) = broadcasting(4, 1) else { return };
    for (head_dim, head_dim_v) in [(1, 3), (31, 40), (64, 64), (80, 36), (128, 59)] {
        let problem =
            AttentionProblem::new(AttentionShape::new(1, 2, 70, head_dim).with_head_dim_v(head_dim_v)).with_causal();
        check(&library, &problem, &inputs(&problem, 2));
    }
}

#[test]
fn splits() {
    let Some(library) = broadcasting(8, 2) else { return };
    let shape = AttentionShape::new(1, 2, 37, 16).with_seqlen_kv(75);
    let problem = AttentionProblem::new(shape).with_causal().with_dropout(0.1, 3);
    check(&library.splits(3), &problem, &inputs(&problem, 3));
}

/// The planner's own choice on software drivers takes many rows.
#[test]
fn many_rows() {
    let library = limited(|_| ());
    let problem = AttentionProblem::new(AttentionShape::new(1, 1, 300, 40).with_seqlen_kv(70));
    let given = inputs(&problem, 4);
    let first = run(&library, &problem, &given);
    check(&library, &problem, &given);
    for _ in 0..9 {
        assert!(run(&library, &problem, &given) == first);
    }
}

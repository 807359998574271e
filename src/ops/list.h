/* One line an op: OP(name) declares op_def_<name>, defined in its own file. A new op adds its line
 * here and its files, nothing else. */

/* views */
OP(reshape)
OP(split)
OP(concat)

/* element-wise */
OP(add)
OP(scale)
OP(cast)
OP(fill)
OP(swiglu)
OP(swiglu_grad)
OP(geglu)
OP(geglu_grad)
OP(softcap)
OP(softcap_grad)

/* norms */
OP(rmsnorm)
OP(add_rmsnorm)
OP(rmsnorm_grad)
OP(l2norm)
OP(l2norm_grad)

/* positions */
OP(rope_table)
OP(rope)
OP(query_temperature)

/* embedding, products, loss */
OP(embed)
OP(embed_grad)
OP(linear)
OP(linear_dx)
OP(linear_dw)
OP(linear_dw_accumulate)
OP(linear_cross_entropy)
OP(linear_cross_entropy_grad)
OP(vocab_stats)
OP(vocab_stats_grad)
OP(vocab_loss)
OP(vocab_loss_grad)

/* attention */
OP(attention)
OP(attention_grad)
OP(attention_part)
OP(attention_grad_part)
OP(attention_cached)
OP(cache_append)

/* mixture of experts */
OP(grouped_linear)
OP(grouped_linear_dx)
OP(grouped_linear_dw)
OP(route)
OP(route_grad)
OP(expert_sort)
OP(expert_gather)
OP(expert_gather_grad)
OP(expert_combine)
OP(expert_plan)
OP(expert_dispatch)
OP(expert_collect)
OP(expert_share)
OP(expert_pick)
OP(expert_put)
OP(router_loss)
OP(router_loss_grad)

/* update */
OP(grad_norm)
OP(join_norms)
OP(clip_factor)
OP(adamw)
OP(accumulate)
OP(assign)
OP(clear)
OP(expert_bias_update)

/* collectives */
OP(all_reduce)
OP(all_gather)
OP(reduce_scatter)
OP(cut)
OP(all_gather_into)
OP(all_reduce_start)
OP(all_gather_start)
OP(reduce_scatter_start)
OP(all_gather_into_start)
OP(ring_pass)
OP(ring_pass_start)
OP(ring_sum)
OP(wait)
OP(bucket)
OP(bucket_part)
OP(send)
OP(recv)
OP(put)
OP(take)
OP(join_stages)

/* Any bytes as a file of choices: what is taken is written, and read back as the same. */
#include "gpu/choices.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ChoiceTable table = {0}, again = {0};
    Str text = {0};
    (void)choice_table_read(&table, (Bytes){data, size});
    choice_table_write(&table, &text);
    CHECK(choice_table_read(&again, (Bytes){(const uint8_t *)text.at, text.n}) == 0);
    CHECK(again.choice.n == table.choice.n);
    for (size_t i = 0; i < table.choice.n; i++) {
        const Choice *a = table.choice.at[i], *b = choice_find(&again, a->key);
        CHECK(b && !memcmp(&a->algorithm, &b->algorithm, sizeof a->algorithm));
    }
    str_deinit(&text);
    choice_table_deinit(&table);
    choice_table_deinit(&again);
    return 0;
}

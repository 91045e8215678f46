package pipeline

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// In a database without an encoding a row can hold bytes that are no text. That row is
// a dead letter, and the rows after it arrive.
func TestByteThatIsNoText(t *testing.T) {
	t.Parallel()
	config, err := pgxpool.ParseConfig(pgtest.Encoded(t, "SQL_ASCII"))
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["client_encoding"] = "UTF8" // as package pg does
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	st, snapshot := newStageOn(t, pool)
	_, err = st.pool.Exec(t.Context(), `
		ALTER TABLE public.orders ADD COLUMN note text;
		INSERT INTO public.orders VALUES (6, E'caf\xe9');
		INSERT INTO public.orders VALUES (7, 'tea')`)
	if err != nil {
		t.Fatal(err)
	}
	job, _, stop := st.job(t, snapshot[1])
	done := make(chan error, 1)
	go func() { done <- st.runner.Run(t.Context(), job) }()
	for deadline := time.Now().Add(20 * time.Second); st.cursor(t, snapshot[1]).Delivered < 6; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("cursor %+v after 20s, want 6 delivered", st.cursor(t, snapshot[1]))
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
	if c := st.cursor(t, snapshot[1]); c.DeadLettered != 1 {
		t.Errorf("cursor %+v, want one dead letter", c)
	}
}

command -v jackd >/dev/null && command -v gcc >/dev/null || exit 127
export JACK_NO_AUDIO_RESERVATION=1 JACK_DEFAULT_SERVER=s$$
cat > j.c <<'P'
#include <jack/jack.h>
#include <stdio.h>
#include <unistd.h>
static jack_port_t *o, *i; static volatile long n, s;
static int run(jack_nframes_t f, void *a) { float *x = jack_port_get_buffer(o, f), *y = jack_port_get_buffer(i, f); for (unsigned k = 0; k < f; k++) { if (n < 100000) { x[k] = (n + k) % 997; } else x[k] = 0; s += (long)y[k]; } n += f; return 0; }
int main(void) { jack_client_t *c = 0; for (int k = 0; k < 50 && !c; k++) { c = jack_client_open("a", JackNoStartServer, 0); usleep(100000); } if (!c) return 1; o = jack_port_register(c, "o", JACK_DEFAULT_AUDIO_TYPE, JackPortIsOutput, 0); i = jack_port_register(c, "i", JACK_DEFAULT_AUDIO_TYPE, JackPortIsInput, 0);
 jack_set_process_callback(c, run, 0); jack_activate(c); jack_connect(c, "a:o", "a:i"); while (n < 200000) usleep(50000); jack_deactivate(c); printf("%d\n", s > 1000000); jack_client_close(c); }
P
gcc -O2 j.c -o j -ljack || exit 1
jackd -r -d dummy -r 48000 -p 1024 >l 2>&1 & J=$!; sleep 1; ./j 2>e; echo $?; kill $J; wait $J; echo end

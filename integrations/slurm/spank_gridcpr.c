/*
 * SPANK plug-in: has tasks of Slurm jobs run under `cpr exec`, so that they are checkpointed and go on after a requeue.
 *
 * It adds options to srun, sbatch and salloc. Where a job has none of them nothing is different. Where it has, the task
 * that slurmstepd is about to run is replaced by `gridcpr-task` (task=PATH in plugstack.conf), which gets the task's
 * arguments as they are, its program in GRIDCPR_SLURM_PROGRAM, and what the options say in further variables that begin
 * with GRIDCPR_SLURM_. docs/slurm.md is its description.
 */
#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include <slurm/slurm.h>
#include <slurm/spank.h>

SPANK_PLUGIN(gridcpr, 1);

#ifndef TASK
#define TASK "/usr/local/libexec/gridcpr/gridcpr-task"
#endif

/* What can be said with an option, with a word of plugstack.conf, and by a script to the steps that it starts. */
enum { WHAT, INTERVAL, DIRECTORY, ENGINE, SIGNALS, KEEP, NAME, SETTINGS };

static struct {
	const char *word;     /* of plugstack.conf */
	const char *variable; /* of the task */
	char *site;           /* the operator's default */
	char *value;          /* of the option; none where it was not given */
} settings[SETTINGS] = {
	[WHAT] = {"what", "GRIDCPR_SLURM_WHAT", NULL, NULL},
	[INTERVAL] = {"interval", "GRIDCPR_SLURM_INTERVAL", NULL, NULL},
	[DIRECTORY] = {NULL, "GRIDCPR_SLURM_DIRECTORY", NULL, NULL},
	[ENGINE] = {"engine", "GRIDCPR_SLURM_ENGINE", NULL, NULL},
	[SIGNALS] = {"signal", "GRIDCPR_SLURM_SIGNALS", NULL, NULL},
	[KEEP] = {"keep", "GRIDCPR_SLURM_KEEP", NULL, NULL},
	[NAME] = {NULL, "GRIDCPR_SLURM_NAME", NULL, NULL},
};

/* Further words of plugstack.conf, which options cannot overrule. */
static struct {
	const char *word;
	const char *variable;
	char *value;
} places[] = {
	{"task", NULL, NULL},
	{"cpr", "GRIDCPR_SLURM_CPR", NULL},
	{"dir", "GRIDCPR_SLURM_BASE", NULL},
	{"requeue", "GRIDCPR_SLURM_REQUEUE", NULL},
};
enum { PLACES = sizeof places / sizeof *places };

static bool is_duration(const char *text)
{
	return isdigit((unsigned char)*text) && text[strspn(text, "0123456789smh")] == '\0';
}

static bool is_what(const char *text)
{
	return !strcmp(text, "auto") || !strcmp(text, "script") || !strcmp(text, "steps");
}

/* An option was given: here, or where the job was submitted. */
static int take(int which, const char *text, int remote)
{
	(void)remote;
	/* Without a value; srun in a job of sbatch or salloc is told so in a word. */
	if (text == NULL || *text == '\0' || !strcmp(text, "(null)"))
		text = which == WHAT ? "auto" : "";
	bool good = *text != '\0' && (which != INTERVAL || is_duration(text)) && (which != WHAT || is_what(text)) &&
		    (which != KEEP || strspn(text, "0123456789") == strlen(text));
	if (!good) {
		slurm_error("gridcpr: %s is not understood: \"%s\"", settings[which].variable + sizeof "GRIDCPR_SLURM", text);
		return -1;
	}
	free(settings[which].value);
	settings[which].value = strdup(text);
	return settings[which].value ? 0 : -1;
}

static struct spank_option options[] = {
	{"checkpoint", "script|steps", "checkpoint the script of the job or its steps (those, where it calls srun)", 2, WHAT,
	 take},
	{"checkpoint-interval", "TIME", "checkpoint again and again after this time: 30s, 10m, 1h", 1, INTERVAL, take},
	{"checkpoint-dir", "DIR", "keep checkpoints there; every node has to see it", 1, DIRECTORY, take},
	{"checkpoint-engine", "NAME", "checkpoint engine; `cpr engines` lists them", 1, ENGINE, take},
	{"checkpoint-signal", "SIGNAL,...", "save and end the job on these signals (TERM)", 1, SIGNALS, take},
	{"checkpoint-keep", "N", "keep the newest N checkpoints (2)", 1, KEEP, take},
	{"checkpoint-name", "NAME", "go on from the checkpoints of this name, also of an earlier job", 1, NAME, take},
	SPANK_OPTIONS_TABLE_END,
};

/* A word of plugstack.conf: WORD=VALUE. */
static bool configure(const char *word)
{
	size_t length = strcspn(word, "=");
	if (word[length] != '=')
		return false;
	char **slot = NULL;
	for (int i = 0; i < SETTINGS; i++)
		if (settings[i].word && strlen(settings[i].word) == length && !strncmp(settings[i].word, word, length))
			slot = &settings[i].site;
	for (int i = 0; i < PLACES; i++)
		if (strlen(places[i].word) == length && !strncmp(places[i].word, word, length))
			slot = &places[i].value;
	if (slot == NULL)
		return false;
	free(*slot);
	*slot = strdup(word + length + 1);
	return *slot != NULL;
}

int slurm_spank_init(spank_t spank, int ac, char *av[])
{
	for (int i = 0; i < ac; i++)
		if (!configure(av[i])) {
			slurm_error("gridcpr: plugstack.conf has a word that is not understood: %s", av[i]);
			return -1;
		}
	spank_context_t context = spank_context();
	if (context == S_CTX_LOCAL || context == S_CTX_ALLOCATOR || context == S_CTX_REMOTE)
		for (struct spank_option *option = options; option->name; option++)
			if (spank_option_register(spank, option) != ESPANK_SUCCESS)
				return -1;
	return 0;
}

/* Whether a script of a job calls srun: a line that is no comment has it as a word. */
static bool calls_srun(const char *path)
{
	FILE *file = fopen(path, "re");
	if (file == NULL)
		return false;
	bool found = false;
	char *line = NULL;
	size_t size = 0;
	while (!found && getline(&line, &size, file) >= 0) {
		const char *at = line + strspn(line, " \t");
		if (*at == '#')
			continue;
		for (; !found && (at = strstr(at, "srun")) != NULL; at += 4) {
			bool begins = at == line || !(isalnum((unsigned char)at[-1]) || strchr("_-.", at[-1]));
			found = begins && (at[4] == '\0' || isspace((unsigned char)at[4]));
		}
	}
	free(line);
	fclose(file);
	return found;
}

/* Sets a variable of the task. */
static int give(spank_t spank, const char *variable, const char *value)
{
	if (value == NULL)
		return 0;
	spank_err_t error = spank_setenv(spank, variable, value, 1);
	if (error == ESPANK_SUCCESS)
		return 0;
	slurm_error("gridcpr: setting %s: %s", variable, spank_strerror(error));
	return -1;
}

/* As the user, in the process that is to become the task. */
int slurm_spank_task_init(spank_t spank, int ac, char *av[])
{
	(void)ac, (void)av;
	static char buffers[SETTINGS][4096];
	uint32_t step = 0;
	char **argv = NULL;
	int argc = 0;
	if (spank_get_item(spank, S_JOB_STEPID, &step) != ESPANK_SUCCESS || step == SLURM_EXTERN_CONT ||
	    step == SLURM_INTERACTIVE_STEP)
		return 0;
	bool batch = step == SLURM_BATCH_SCRIPT, wanted = false;
	const char *values[SETTINGS];
	for (int i = 0; i < SETTINGS; i++) {
		values[i] = settings[i].value;
		/* Of the script that starts this step. */
		if (!values[i] && !batch &&
		    spank_getenv(spank, settings[i].variable, buffers[i], sizeof buffers[i]) == ESPANK_SUCCESS)
			values[i] = buffers[i];
		wanted |= values[i] != NULL;
	}
	char job[256];
	if (!wanted || spank_getenv(spank, "GRIDCPR_JOB", job, sizeof job) == ESPANK_SUCCESS)
		return 0; /* nobody wants it, or it is part of a job that is checkpointed as a whole */
	for (int i = 0; i < SETTINGS; i++)
		if (!values[i])
			values[i] = settings[i].site;
	if (spank_get_item(spank, S_JOB_ARGV, &argc, &argv) != ESPANK_SUCCESS || argc < 1 || argv == NULL) {
		slurm_error("gridcpr: the task has no program");
		return -1;
	}
	for (int i = 0; i < SETTINGS; i++)
		if (give(spank, settings[i].variable, values[i]))
			return -1;
	if (batch) {
		const char *what = values[WHAT] ? values[WHAT] : "auto";
		if (!strcmp(what, "steps") || (!strcmp(what, "auto") && calls_srun(argv[0])))
			return 0; /* its steps find the variables */
	}
	if (give(spank, "GRIDCPR_SLURM_OF", batch ? "script" : "step") || give(spank, "GRIDCPR_SLURM_PROGRAM", argv[0]))
		return -1;
	for (int i = 0; i < PLACES; i++)
		if (places[i].variable && give(spank, places[i].variable, places[i].value))
			return -1;
	/*
	 * Slurm does not provide for this, but everything else would cost the task what comes between this and execve(2):
	 * TaskProlog, its limits, and a message where there is no such program. The vector is this process's own copy.
	 */
	argv[0] = places[0].value ? places[0].value : (char *)TASK;
	return 0;
}
